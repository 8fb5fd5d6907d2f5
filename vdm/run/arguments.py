"""What the command line takes: the commands and their options."""

import argparse
import pathlib

import vdm


def parser() -> argparse.ArgumentParser:
    """Return the parser; `command` among what it gives is the command's name."""
    whole = argparse.ArgumentParser(
        prog="vdm",
        description="Variational diffusion models, measured in bits.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"vdm {vdm.__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train", help="train a model, or go on training it", allow_abbrev=False
    )
    train.add_argument("--config", help="a config file; a workdir that holds a run needs none")
    train.epilog = "Any value of the config can be set: --config.train.num_steps=2000"
    train.add_argument(
        "--dry_run", action="store_true", help="print what the run would take, and run nothing"
    )
    train.set_defaults(command="train")

    evaluate = commands.add_parser(
        "evaluate", help="measure bits per dimension on a split", allow_abbrev=False
    )
    evaluate.add_argument("--split", default="test", help="test (default) or train")
    evaluate.add_argument("--bound", help="vlb (the variational bound), ode or vlb,ode")
    evaluate.add_argument("--num_steps", help="values of T, such as 10,100,1000,inf")
    evaluate.add_argument(
        "--clip_denoised", action=argparse.BooleanOptionalAction, help="measure it clipped as well"
    )
    evaluate.add_argument("--dequantisation", help="ode: truncated_normal, uniform or both")
    evaluate.add_argument("--num_samples", help="ode: numbers K of draws, such as 1,10")
    evaluate.add_argument("--divergence", help="ode: hutchinson, or exact (for few dimensions)")
    evaluate.add_argument("--num_probes", type=int, help="ode: of hutchinson")
    evaluate.add_argument("--ode_steps", type=int, help="ode: even steps, not as many as needed")
    evaluate.add_argument("--tolerance", type=float, help="ode: of the local error")
    evaluate.add_argument("--params", default="ema", help="ema (averaged, default) or raw")
    evaluate.add_argument("--law", help="law of λ at T=inf: training, schedule, sigmoid, adaptive")
    evaluate.add_argument("--levels_per_example", type=int, help="noise levels per example")
    evaluate.add_argument("--batch_size", type=int, help="rows per call; no influence on results")
    evaluate.add_argument("--seed", type=int)
    evaluate.set_defaults(command="evaluate")

    sample = commands.add_parser("sample", help="draw samples", allow_abbrev=False)
    sample.add_argument("--num", type=int, default=64, help="how many (default 64)")
    sample.add_argument(
        "--out", type=pathlib.Path, help="a .png or .npy file (default: in workdir)"
    )
    sample.add_argument(
        "--sampler",
        help="ancestral, ddim, heun, dpmpp_2m, exponential or euler_maruyama, with arguments "
        "such as ddim:eta=0.5",
    )
    sample.add_argument("--grid", help="of noise levels: time, lambda or edm")
    sample.add_argument(
        "--guidance", type=float, help="above 1 exaggerates the class, 0 ignores it"
    )
    sample.add_argument(
        "--clip_denoised", action=argparse.BooleanOptionalAction, help="keep x̂ in the data's range"
    )
    sample.add_argument("--final", help="from z₀ to data: mode or draw")
    sample.add_argument("--steps", dest="num_steps", type=int, help="sampling steps")
    sample.add_argument("--batch_size", type=int, help="samples per call; no influence on results")
    sample.add_argument("--seed", type=int)
    sample.set_defaults(command="sample")

    report = commands.add_parser(
        "report", help="write an HTML page on a run, or on several compared", allow_abbrev=False
    )
    report.add_argument(
        "workdirs",
        nargs="*",
        type=pathlib.Path,
        metavar="RUN",
        help="workdirs; several are compared",
    )
    report.add_argument(
        "--out",
        type=pathlib.Path,
        help="an .html file (default: report.html in the workdir; of several, comparison.html in "
        "the current folder)",
    )
    report.add_argument(
        "--num", type=int, default=16, help="samples drawn of each run (default 16, 0 for none)"
    )
    report.add_argument("--workdir", type=pathlib.Path, help="the run's folder, in place of RUN")
    report.set_defaults(command="report")

    bring = commands.add_parser(
        "import", help="make a run of another code's checkpoint", allow_abbrev=False
    )
    bring.add_argument("path", type=pathlib.Path, metavar="PATH", help="the checkpoint's file")
    bring.add_argument("--format", required=True, help="official (google-research/vdm)")
    bring.add_argument(
        "--config", help="a config file with the data set; without it, the official CIFAR-10 one"
    )
    bring.epilog = "Any value of the config can be set: --config.data.name=cifar10"
    bring.set_defaults(command="import")

    compress = commands.add_parser(
        "compress", help="make one small file of arrays or images, without loss", allow_abbrev=False
    )
    compress.add_argument(
        "source", metavar="IN", type=pathlib.Path, help=".npy, .npz, .png or a folder of .png"
    )
    compress.add_argument("out", metavar="OUT", type=pathlib.Path, help="the file to write")
    compress.add_argument("--steps", dest="num_steps", type=int, help="T of the bound (100)")
    compress.add_argument("--batch_size", type=int, help="examples per call of the network (16)")
    compress.add_argument(
        "--per_block", type=int, help="examples that stand and fall together (1024)"
    )
    compress.add_argument(
        "--resolution",
        type=int,
        help="latents are rounded to 2^-this of a step's standard deviation (2)",
    )
    compress.set_defaults(command="compress")

    decompress = commands.add_parser(
        "decompress", help="get back what was compressed", allow_abbrev=False
    )
    decompress.add_argument("source", metavar="FILE", type=pathlib.Path, help="of vdm compress")
    decompress.add_argument(
        "out", metavar="OUT", type=pathlib.Path, help="a file or folder, of the kind it was"
    )
    decompress.add_argument(
        "--recover", action="store_true", help="restore what is intact of a damaged file"
    )
    decompress.set_defaults(command="decompress")

    for command in (report, bring, compress, decompress):
        command.set_defaults(distributed=False, coordinator=None)
        command.set_defaults(num_processes=None, process_index=None)
    for command in (train, evaluate, sample, bring, compress, decompress):
        command.add_argument("--workdir", type=pathlib.Path, required=True, help="the run's folder")
    for command in (train, evaluate, sample):
        several = command.add_argument_group("several processes, each running this command")
        several.add_argument(
            "--distributed",
            action="store_true",
            help="JAX finds the others itself (SLURM, Kubernetes, TPU pods)",
        )
        several.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process")
        several.add_argument("--num_processes", type=int)
        several.add_argument("--process_index", type=int, help="of this one, from 0")
    return whole
