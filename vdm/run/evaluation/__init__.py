"""What an evaluation measures: the bound, the ODE, the profile over λ, and their record."""
