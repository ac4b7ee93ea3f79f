"""Export a network to ONNX or TFLite: written, audited against its source, and only then there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from checks.audit.graphs.graph_formats import GRAPH_FORMATS
from checks.audit.judge import describe_fault
from checks.audit.result import AuditResult
from checks.audit.run import audit
from checks.core.source_tensors import refuse_broken_source
from checks.core.types import Say
from converter.atomic import AtomicFiles, check_folder
from converter.errors import DifferenceError, SourceError, UsageError
from converter.hub.locate import LocalModel, locate
from converter.manifest import file_digest
from converter.mtcnn_layer_map import NETWORKS, MtcnnNetwork
from converter.plan import Weights
from converter.write_output import explain_write_errors
from faces.export.calibration import Calibration, in_batches, plan_calibration
from faces.export.interface import Interface, plan_interface
from faces.export.result import ExportResult, Format, Precision
from faces.export.weights import ExportWeights, read_weights
from faces.model import Standardisation

_ENDINGS: dict[str, Format] = {".onnx": "onnx", ".tflite": "tflite"}
_MOST_FAULTS = 3  # in a message


def export(
    source: str | Path,
    output: str | Path,
    *,
    to: Format | None = None,
    precision: Precision = "float32",
    bake: bool = False,
    standardisation: Standardisation | None = None,
    classify: bool = False,
    batch: int | Literal["dynamic"] | None = None,
    calibrate: str | Path | None = None,
    weights: Weights = "variable",
    step: int | None = None,
    ignore: Sequence[str] = (),
    offline: bool = False,
    seed: int = 0,
    say: Say = lambda _: None,
) -> ExportResult:
    """Export a network to a file that a phone or a server runs, with the audit that the file has passed.

    The file is written under a hidden name and audited against the source: every weight, the structure, the
    standardisation, and the results of its runtime. It gets its name only if the verdict is faithful.

    Args:
        source: The weights: any source of the converter, a published name, or a training's folder `best`.
        output: The file to write; its ending names the format.
        to: The format, for a file of another ending.
        precision: The precision of the stored weights. "int8" also computes in integers; the others compute
            in float32.
        bake: Whether the graph takes the pixels of RGB images, uint8, and standardises them itself.
        standardisation: The standardisation; None takes that of the catalog or the manifest.
        classify: Whether the graph gives the logits of the classifier in place of embeddings.
        batch: The number of images at a time, or "dynamic" for any; None takes any for ONNX and one for
            TFLite, whose interpreter is fastest with a fixed size.
        calibrate: The faces that int8 is calibrated on, as for `faces.export.calibration.read_calibration`.
        weights: The variables of the source, or their moving averages ("average").
        step: As in `open_source`.
        ignore: Shell patterns of tensors to leave out.
        offline: Never download faces to calibrate on, or the detector that finds them.
        seed: The seed of the images of the audit.
        say: Progress callback.

    Raises:
        UsageError: The output exists or has no folder, its ending says no format, the weights have no
            classifier, the standardisation to bake in or to calibrate with is not known or contradicts what
            is stated, or the format or the precision do not fit the other arguments.
        SourceError, MappingError: The source is unreadable, corrupt, not finite or another network.
        RequirementError: A package that writes or runs the format is not installed, or the disk is full.
        DifferenceError: The audit refuses the file, and none is kept.
    """
    output = Path(output)
    graph_format = check_output(output, to)
    path = locate(source)
    say("reading the weights")
    read = read_weights(path, weights=weights, step=step, ignore=ignore)
    interface = plan_interface(
        read,
        graph_format,
        bake=bake,
        standardisation=standardisation,
        classify=classify,
        batch=batch,
        precision=precision,
    )
    calibration = plan_calibration(interface, precision, calibrate, offline=offline, say=say)
    say("exporting")
    judge = partial(audit, against=path, weights=weights, step=step, ignore=ignore, seed=seed, say=say)
    if calibration is not None:
        judge = partial(judge, faces=calibration.faces, standardisation=interface.standardisation)
    with AtomicFiles(output.parent, overwrite=False) as files:
        result = _write_audited(files, output, read, interface, precision, judge, calibration)
        with explain_write_errors(output):
            files.commit()
    return result


def export_networks(
    model: LocalModel,
    folder: str | Path,
    *,
    to: Format = "onnx",
    precision: Precision = "float32",
    batch: int | Literal["dynamic"] | None = None,
    seed: int = 0,
    say: Say = lambda _: None,
) -> tuple[ExportResult, ...]:
    """Export each network of the face detector under its published name: det1.npy becomes pnet.onnx.

    P-Net takes images of any size. All files appear, or none.

    Args:
        model: MTCNN, as `hub.locate.find_model("mtcnn")` gives it.
        folder: The folder of the outputs.
        to: The format.
        precision: As in `export`.
        batch: As in `export`.
        seed: As in `export`.
        say: Progress callback.

    Raises:
        UsageError: The folder does not exist, a file in it does, or the precision is int8.
        RequirementError, DifferenceError: As for `export`.
    """
    folder = Path(folder)
    outputs = {
        model.files[network.npy_name]: folder / f"{network.state_dict_stem}.{to}"
        for network in map(MtcnnNetwork, NETWORKS)
    }
    for output in outputs.values():
        check_output(output, to)
    with AtomicFiles(folder, overwrite=False) as files:
        results = []
        for path, output in outputs.items():
            read = read_weights(path)
            interface = plan_interface(
                read,
                to,
                bake=False,
                standardisation=None,
                classify=False,
                batch=batch,
                precision=precision,
            )
            judge = partial(audit, against=path, seed=seed, say=say)
            results.append(_write_audited(files, output, read, interface, precision, judge))
        with explain_write_errors(folder):
            files.commit()
    return tuple(results)


def _write_audited(
    files: AtomicFiles,
    output: Path,
    weights: ExportWeights,
    interface: Interface,
    precision: Precision,
    judge: Callable[[Path], AuditResult],
    calibration: Calibration | None = None,
) -> ExportResult:
    """Write a file under a hidden name and audit it.

    Raises:
        RequirementError: The disk is full.
        DifferenceError: The audit refuses it.
    """
    staged, metadata = files.stage(output.name), interface.metadata(weights, precision)
    if calibration is not None:
        metadata["calibrated_on"] = calibration.description
    with explain_write_errors(output):
        _write(staged, weights, interface, precision, metadata, calibration)
    try:
        result = judge(staged)
    except SourceError as error:
        if error.path != staged:
            raise
        raise DifferenceError(f"{output}: nothing was kept: {str(error).partition(': ')[2]}") from error
    _refuse(output, result)
    names = {str(staged): str(output)}  # the hidden file is gone when the caller reads this
    files_read = {names.get(name, name): digest for name, digest in result.files.items()}
    result = replace(result, port=str(output), files=files_read)
    digest, size = file_digest(staged), staged.stat().st_size
    return ExportResult(output, interface.format, precision, digest, size, metadata, result)


def check_output(output: Path, to: Format | None) -> Format:
    """Check the name of an output, and that the packages of its format are installed; return the format.

    Raises:
        UsageError: It exists, its folder does not or cannot be written to, or its ending names no format or
            another one.
        RequirementError: A package is not installed.
    """
    ending = _ENDINGS.get(output.suffix.lower())
    graph_format = to or ending
    if graph_format is None:
        step = "Give a name that ends in .onnx or .tflite, or the format with --to; for mtcnn a folder"
        raise UsageError(f"{output}: the ending names no format. {step} that exists.")
    if ending not in (None, graph_format):
        raise UsageError(f"{output}: the ending says {ending}, but --to says {to}. Change one of them.")
    if os.path.lexists(output):
        raise UsageError(f"{output} exists, and an export never replaces a file. Give another name.")
    check_folder(output.parent)
    _require_packages(graph_format)
    return graph_format


def _require_packages(graph_format: Format) -> None:
    audited = next(each for each in GRAPH_FORMATS if each.name.lower() == graph_format)
    audited.require(f"an export to {audited.name}")
    if graph_format == "tflite":
        from checks.core.tensorflow_side import require_tensorflow

        require_tensorflow("to write TFLite")


def _write(
    path: Path,
    weights: ExportWeights,
    interface: Interface,
    precision: Precision,
    metadata: dict[str, str],
    calibration: Calibration | None,
) -> None:
    """Write the file; here the format and the precision choose the writer."""
    halved = precision == "float16"
    if interface.format == "onnx":
        from faces.export.write_onnx import write_onnx

        if calibration is not None:
            from faces.export.quantise import quantise_onnx

            with TemporaryDirectory(dir=path.parent) as folder:
                float32 = Path(folder, "float32.onnx")
                write_onnx(float32, interface.module(weights), interface, {})
                quantise_onnx(float32, path, calibration.images, metadata)
            return
        write_onnx(path, interface.module(weights), interface, metadata, halved=halved)
        return
    from facenet_tf.lite import write_mtcnn_tflite, write_tflite

    batch, height, width, _ = interface.shape
    if isinstance(weights.network, MtcnnNetwork):
        name = weights.network.name
        write_mtcnn_tflite(path, name, weights.variables, batch=batch, halved=halved, metadata=metadata)
        return
    write_tflite(
        path,
        weights.variables,
        images=(batch, height, width),
        baked=interface.baked,
        classify=interface.classifies,
        halved=halved,
        calibrate=() if calibration is None else list(in_batches(calibration.images, batch or 1)),
        metadata=metadata,
    )


def _refuse(output: Path, result: AuditResult) -> None:
    """Refuse an export whose audit is not faithful.

    Raises:
        SourceError: The source computes values that are not finite, so that nothing can be judged by it.
        DifferenceError: It is not.
    """
    if result.passed:
        return
    if not result.differs:
        refuse_broken_source(Path(result.source), result.broken)
    faults = [describe_fault(tensor) for tensor in result.tensors if not tensor.is_faithful]
    failed = [
        f"{each.name}: {'; '.join((each.statement, *each.details))}"
        for each in result.judgements
        if not each.passed and each.name != "tensors"
    ]
    causes = (*faults[:_MOST_FAULTS], *failed, result.not_understood)
    lines = "".join(f"\n  {cause}" for cause in causes if cause)
    raise DifferenceError(f"{output}: the audit refuses it, and nothing was kept. {result.verdict}{lines}")
