"""The results of an evaluation: the bound, the ODE, the profile over λ, and their record."""
