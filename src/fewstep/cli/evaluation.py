"""`fewstep eval`: metrics with their protocols, references, pairs of images, comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from fewstep.cli.arguments import Device, parse_seeds
from fewstep.cli.sampling import Sampling
from fewstep.runtime import outputs

if TYPE_CHECKING:
    from fewstep.metrics.evaluation import Options
    from fewstep.metrics.protocol import MetricResult
    from fewstep.metrics.references import ReferenceData
    from fewstep.metrics.sources import ImageSource

Json = Annotated[Path | None, arg(name="json")]
Dtype = Literal["float32", "auto", "bfloat16", "float16"]
FID_IMAGES = 50_000
"""The number of images for which FID is reported."""


def evaluate(
    source: Positional[Path],
    *,
    reference: str,
    metrics: str = "fid",
    num: int | None = None,
    seeds: str | None = None,
    repeats: int = 1,
    extractor: str | None = None,
    extrapolate: bool = False,
    feature_dtype: Dtype = "float32",
    batch: int | None = None,
    json_file: Json = None,
    markdown: Path | None = None,
    overwrite: bool = False,
    sampling: OmitArgPrefixes[Sampling] = Sampling(),
    device: Device = None,
) -> None:
    """Evaluate a model or images against a reference. Every value is reported with its protocol.

    Args:
        source: model or run folder, or images: any source that data pack reads, such as a folder, zip, npz or digits.
        reference: statistics (ours, EDM's or ADM's npz, EDM2's pkl), a file or its http(s) address; or images, as source.
        metrics: separated by commas: fid, sfid, kid, is, pr, dc (3 and 5 neighbours; pr5, dc3), clip_fid, and fd_, kd_,
            pr_, dc_ with an extractor, such as fd_dinov2 or fd_pixels; each with @ and a number of images, such as
            fid@50k; also fid50k_full, is50k, pr50k3_full.
        num: number of images to evaluate. If unset: for a model 50,000, or the number in the metric names, or the number of
            reference images if that is less; for a folder all images.
        seeds: seeds of a model's images, such as 0-49999. If unset: from 0 on.
        repeats: number of repetitions, each with the next seeds; the table has mean, spread and minimum.
        extractor: your own features, mine.py:features, for metrics such as fd_features; several separated by commas.
        extrapolate: also estimate Frechet distances at infinitely many images (Chong & Forsyth, 2020).
        feature_dtype: precision of Inception, CLIP and DINOv2. auto is bfloat16 if the hardware supports it, twice as fast
            on CPUs. Values at different precision are not comparable.
        batch: images at a time. If unset: 64; for a model on GPUs as many as fit.
        json_file: JSON file for all values, each with its protocol.
        markdown: Markdown file for the table.
        overwrite: replace existing files.
        sampling: How images are generated, for a model.
    """
    from fewstep.io.reference_files import open_reference
    from fewstep.metrics.evaluation import BATCH, Options
    from fewstep.metrics.evaluation import evaluate as measure
    from fewstep.metrics.sources import first, from_path
    from fewstep.runtime.distributed import process_group, use
    from fewstep.runtime.precision import chosen_dtype

    use(device)
    at_least_one(batch=batch, num=num, repeats=repeats)
    destinations(json_file, markdown, apart=[source, reference], overwrite=overwrite)
    dtype = chosen_dtype(feature_dtype)
    options = Options(metrics.split(","), user_extractors(extractor), batch or BATCH, extrapolate, dtype)
    options.parsed()
    real = open_reference(reference)
    with process_group():
        if is_model(source):
            chosen = choose_seeds(seeds, num, options, real)
            sources = model_sources(source, chosen, repeats, batch, sampling)
        else:
            if seeds is not None or repeats != 1 or sampling != Sampling():
                raise ValueError(
                    f"{source} holds images, not a model: --seeds, --repeats and the sampler's options do not apply"
                )
            sources = [from_path(source) if num is None else first(from_path(source), num)]
        deliver([measure(images, real, options) for images in sources], json_file, markdown)


def deliver(runs: list[list[MetricResult]], json_file: Path | None, markdown: Path | None) -> None:
    """Print the table of results, and write it and the results to the files asked for; on the first rank."""
    from fewstep.metrics.protocol import markdown as table
    from fewstep.metrics.protocol import write_results
    from fewstep.runtime.distributed import rank
    from fewstep.runtime.files import new_file

    if rank() != 0:
        return
    text = table(runs)
    if json_file is not None:
        write_results(json_file, [result for results in runs for result in results])
    if markdown is not None:
        with new_file(markdown) as partial:
            partial.write_text(text, encoding="utf-8")
    print(text, end="")


def at_least_one(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1; got {value}")


def destinations(json_file: Path | None, markdown: Path | None, *, apart: list[str | Path], overwrite: bool) -> None:
    """Raise ValueError before the work for files that cannot be written, exist or are inputs."""
    if json_file is not None:
        outputs.file(json_file, apart=apart, overwrite=overwrite)
    if markdown is not None:
        outputs.file(markdown, apart=apart, overwrite=overwrite)
        if json_file is not None and markdown.resolve() == json_file.resolve():
            raise ValueError(f"--json and --markdown are the same file, {markdown}; name two")


def user_extractors(names: str | None) -> dict[str, Any]:
    """Extractors of a user's own by the name that metrics have for them."""
    from fewstep.metrics.extractors import user

    found = [user(name) for name in names.split(",")] if names is not None else []
    return {extractor.name: extractor for extractor in found}


def is_model(path: Path) -> bool:
    """Whether a path means a model or a run rather than images. `digits` alone means the data set."""
    from fewstep.io.hub import is_address
    from fewstep.io.model_folder import is_shipped

    if is_shipped(path) and str(path) != "digits":
        return True
    return is_address(path) or (path / "config.json").is_file() or (path / "run.json").is_file()


def choose_seeds(seeds: str | None, num: int | None, options: Options, real: ReferenceData) -> list[int]:
    if seeds is not None:
        chosen = parse_seeds(seeds)
        if num is not None and num > len(chosen):
            raise ValueError(f"--num {num} are more than the {len(chosen)} seeds of --seeds")
        return chosen[:num]
    asked = max((metric.limit or 0 for metric in options.parsed()), default=0)
    there = FID_IMAGES if real.images is None else min(FID_IMAGES, len(real.images))
    return list(range(num or asked or there))


def model_sources(
    path: Path, seeds: list[int], repeats: int, batch: int | None, sampling: Sampling
) -> list[ImageSource]:
    """The images of a model as sources, one for each repetition."""
    from dataclasses import replace

    from fewstep.io.model_folder import card, find_model_folder
    from fewstep.metrics.protocol import repeat_seeds
    from fewstep.runtime.distributed import device
    from fewstep.runtime.files import sha256
    from fewstep.sample import generated

    model = sampling.load(path)
    plan = sampling.plan(model)
    model.codec.prepare(device())
    about = {"model": card(path).name or path.name, "weights": sha256(find_model_folder(path) / "model.safetensors")}
    if sampling.guide is not None:
        about["guide"] = sha256(find_model_folder(sampling.guide) / "model.safetensors")
    options = {"plan": plan, "batch_size": batch, "tf32": sampling.tf32}
    found = [generated(model, chosen, **options) for chosen in repeat_seeds(seeds, repeats)]
    return [replace(source, protocol={**about, **source.protocol}) for source in found]


def reference(
    data: Positional[str],
    out: Positional[Path],
    *,
    metrics: str = "fid,kid,pr",
    extractor: str | None = None,
    feature_dtype: Dtype = "float32",
    batch: int = 64,
    overwrite: bool = False,
    device: Device = None,
) -> None:
    """Compute reference statistics of real images once, and write them to a file that labels each array.

    Args:
        data: images: any source that data pack reads, such as a folder, zip, npz or digits.
        out: npz file to write.
        metrics: metrics for which the reference will be used; see fewstep eval.
        extractor: your own features, mine.py:features; several separated by commas.
        feature_dtype: precision of Inception, CLIP and DINOv2; fewstep eval needs the same.
        batch: images at a time.
        overwrite: replace an existing file.
    """
    from fewstep.io.reference_files import open_reference
    from fewstep.metrics.evaluation import Options, make_reference
    from fewstep.metrics.references import save_reference
    from fewstep.runtime.distributed import process_group, rank, use
    from fewstep.runtime.precision import chosen_dtype

    use(device)
    if out.suffix.lower() != ".npz":
        raise ValueError(f"a reference is an npz file; name it so: {out.with_suffix('.npz')}")
    at_least_one(batch=batch)
    outputs.file(out, outside=[data], overwrite=overwrite)
    dtype = chosen_dtype(feature_dtype)
    options = Options(metrics.split(","), user_extractors(extractor), batch, feature_dtype=dtype)
    options.parsed()
    images = open_reference(data).images
    if images is None:
        raise ValueError(f"{data} has no images to make a reference from")
    with process_group():
        made = make_reference(images, options)
        if rank() == 0:
            save_reference(made, out)
            print(f"{out}: {made.contents()} of {made.n:,} images")


def pairs(
    a: Positional[Path],
    b: Positional[Path],
    *,
    metrics: str = "psnr,ssim,lpips",
    batch: int = 16,
    json_file: Json = None,
    markdown: Path | None = None,
    overwrite: bool = False,
    device: Device = None,
) -> None:
    """Compare images with their targets, pair by pair, and print the mean of each metric.

    Args:
        a: images: any source that data pack reads, such as a folder, zip or npz.
        b: their targets, with the same file names.
        metrics: separated by commas: psnr, ssim, ssim_7 (of images below 11x11), lpips (lpips_vgg), lpips_alex.
        batch: pairs at a time.
        json_file: file for all values, each with its protocol.
        markdown: file for the table.
        overwrite: replace existing files.
    """
    from fewstep.metrics.pairs import evaluate_sets
    from fewstep.runtime.distributed import process_group, use

    use(device)
    at_least_one(batch=batch)
    destinations(json_file, markdown, apart=[a, b], overwrite=overwrite)
    with process_group():
        deliver([evaluate_sets(a, b, metrics.split(","), batch_size=batch)], json_file, markdown)


def compare(files: Positional[tuple[Path, ...]]) -> None:
    """Compare results of several evaluations in one table; warn about values with different protocols.

    Args:
        files: JSON files that fewstep eval --json wrote.
    """
    from fewstep.metrics.protocol import compare as compare_results
    from fewstep.metrics.protocol import read_results

    if len(files) < 2:
        raise ValueError("a comparison needs at least two files of results")
    print(compare_results({str(path): read_results(path) for path in files}), end="")
