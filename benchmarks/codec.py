"""Lossless compression of held-out digits: bits, time, and how wide the lattice may be.

    make demo
    python benchmarks/codec.py --workdir=runs/demo --steps=100,1000
    python benchmarks/codec.py --workdir=runs/demo --steps=100 --chain=20
    python benchmarks/codec.py --workdir=runs/demo --steps=100 --spacings=1,0.5,0.25,0.125,0.0625

All numbers are bits per dimension. "coded" is what all images added to the stack, "ideal" is
Σ (log q − log p) of the same path, "overhead" what coded is above that; "bound" is the bound with
T steps along the same path, whose mean over paths is that of "ideal"; ± is the standard error
over images. "kept" is all words of the file, its seed included. Every image is decoded and
compared. JPEG XL is compared as well where the package pillow-jxl-plugin is installed. "host" is
the share of encoding without the network: the coder and NumPy. A T with a c behind it is the chain
of few steps that `vdm fit-chain` has kept in the workdir.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import io
import lzma
import math
import pathlib
import time

import jax.numpy as jnp
import numpy as np
from PIL import Image

from vdm.run import data, trained
from vdm.run.workdir import chains


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--num", type=int, default=None, help="how many images, all by default")
    parser.add_argument("--steps", default="100")
    parser.add_argument("--chain", default="", help="numbers of steps of the run's fitted chains")
    parser.add_argument("--spacings", default="0.25")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--ramp", type=int, default=8)
    options = parser.parse_args()
    run = trained.load(options.workdir)
    images = data.load(run.config.data, options.split).x[: options.num]
    print(f"{len(images)} images {images.shape[1:]} of {options.split}, step {run.step}")
    for name, size in others(images).items():
        print(f"{name:28s}{8 * size / images.size:8.3f}")
    print(
        f"{'T':>5s}{'spacing':>9s}{'coded':>8s}{'ideal':>16s}{'overhead':>10s}{'bound':>16s}"
        f"{'kept':>8s}{'seed bits':>10s}{'enc./s':>8s}{'dec./s':>8s}{'host':>7s}"
    )
    words = [*options.steps.split(","), *(f"{n}c" for n in options.chain.split(",") if n)]
    for word in words:
        num_steps, chain = int(word.removesuffix("c")), None
        if word.endswith("c"):
            chain = chains.find(options.workdir, run.params, num_steps).chain
        for spacing in map(float, options.spacings.split(",")):
            codec = run.model.codec(
                run.params,
                images.shape[1:],
                num_steps=num_steps if chain is None else None,
                chain=chain,
                batch_size=options.batch_size,
                ramp=options.ramp,
                spacing=spacing,
            )
            row(codec, word, images)


def row(codec, word, images):
    """Encode and decode, and print what it took."""
    codec.fingerprint()  # compiles
    got, encoding = timed(lambda: codec.encode(images))
    back, decoding = timed(lambda: codec.decode(got.words, len(images)))
    if not np.array_equal(back, images):
        raise AssertionError("what was decoded is not what was encoded")
    # The best denoiser of unit Gaussian data costs no time, and its errors are no outliers.
    cheap = dataclasses.replace(
        codec, eps_fn=lambda z, log_snr, cond: z * sigma(log_snr), variance_fn=None
    )
    cheap.fingerprint()
    _, host = timed(lambda: cheap.encode(images))
    n, each = len(images), images.size / len(images)
    print(
        f"{word:>5s}{codec.spacing:9.4f}{got.net_bits / images.size:8.4f}"
        f"{mean(got.ideal_bits / each)}{100 * (got.net_bits / got.ideal_bits.sum() - 1):9.2f}%"
        f"{mean(got.bound_bits / each)}{32 * len(got.words) / images.size:8.4f}"
        f"{got.seed_bits:10.0f}{n / encoding:8.2f}{n / decoding:8.2f}{100 * host / encoding:6.0f}%",
        flush=True,
    )


def sigma(log_snr):
    return jnp.sqrt(1.0 / (1.0 + jnp.exp(log_snr)))


def mean(values):
    error = values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():8.4f} ± {error:.3f}"


def timed(fn):
    start = time.perf_counter()
    return fn(), time.perf_counter() - start


def others(images):
    """Return what usual formats make of the images, each apart or all on one sheet, in bytes."""
    planes = images.astype(np.uint8)
    planes = planes[..., 0] if planes.shape[-1] == 1 else planes
    whole = sheet(planes)
    sizes = {
        "PNG, one file per image": sum(len(saved(plane, "PNG")) for plane in planes),
        "PNG, one sheet": len(saved(whole, "PNG")),
        "WebP, one sheet": len(saved(whole, "WEBP")),
        "xz of the bytes": len(
            lzma.compress(planes.tobytes(), preset=9 | lzma.PRESET_EXTREME, format=lzma.FORMAT_XZ)
        ),
    }
    if importlib.util.find_spec("pillow_jxl") is not None:  # the package pillow-jxl-plugin
        importlib.import_module("pillow_jxl")
        sizes["JPEG XL, one file per image"] = sum(len(saved(plane, "JXL")) for plane in planes)
        sizes["JPEG XL, one sheet"] = len(saved(whole, "JXL"))
    return sizes


def sheet(planes):
    """Put images side by side in rows, as many as fit into a square; the last row is filled up."""
    columns = math.ceil(math.sqrt(len(planes)))
    blank = np.zeros((-len(planes) % columns, *planes.shape[1:]), planes.dtype)
    rows = np.concatenate([planes, blank]).reshape(-1, columns, *planes.shape[1:])
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


def saved(pixels, kind):
    file = io.BytesIO()
    options = {
        "PNG": {"optimize": True},
        "WEBP": {"lossless": True, "quality": 100, "method": 6},
        "JXL": {"lossless": True, "effort": 9},
    }
    Image.fromarray(pixels).save(file, kind, **options[kind])
    file.seek(0)
    if not np.array_equal(
        np.asarray(Image.open(file).convert(Image.fromarray(pixels).mode)), pixels
    ):
        raise AssertionError(f"{kind} has lost something")
    return file.getvalue()


if __name__ == "__main__":
    main()
