"""Prepared ``nn.Module`` -> adaptive graph: `onnx_ir.Model` that holds every candidate.

Quantizers are ``qtool::FakeQuant`` nodes; norms and biases with several rows are
``qtool::Norm`` nodes (`qtool.export.trace_norms`).

A FakeQuant node has inputs (x, steps) and attributes ``name``, ``role``, ``bits`` (every
candidate) and ``signed``; ``steps`` is (candidates, channels). Where zero points differ from
`qtool.core.grids.activation_window`, ``zero_points`` has one for each candidate. Where weights
are not rounded as they are, ``scheme`` says how, x is what is rounded (normalised weights:
torch computed it, so that no other tanh can differ), and a third input ``plain`` is the
weight. ``keeps`` is 1 where the first candidate is the layer's whatever a default asks.
BatchNorm is not folded.
Which bits and rows are used is decided later, by `passes.adaptive.resolve_bits`.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx import defs
from onnxscript import optimizer, values
from torch import nn

from qtool.core.errors import UnsupportedError
from qtool.export.trace_norms import insert_norms
from qtool.export.trace_shapes import simplify_shapes
from qtool.nn.control import baked

DOMAIN = "qtool"
OPSET = 21


def _schema() -> defs.OpSchema:
    parameter, attribute = defs.OpSchema.FormalParameter, defs.OpSchema.Attribute
    kinds = defs.OpSchema.AttrType
    return defs.OpSchema(
        "FakeQuant", DOMAIN, 1,
        inputs=[
            parameter("x", "T"), parameter("steps", "T"),
            parameter("plain", "T", param_option=defs.OpSchema.FormalParameterOption.Optional),
        ],
        outputs=[parameter("y", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[
            attribute("name", kinds.STRING, ""), attribute("role", kinds.STRING, ""),
            attribute("bits", kinds.INTS, ""), attribute("signed", kinds.INT, ""),
            attribute("zero_points", kinds.INTS, "", required=False),
            attribute("scheme", kinds.STRING, "", required=False),
            attribute("keeps", kinds.INT, "", required=False),
        ],
    )  # fmt: skip


_FAKE_QUANT = values.Op(values.Opset(DOMAIN, 1), "FakeQuant", _schema())


def _translate(
    x: Any,
    steps: Any,
    name: str,
    role: str,
    bits: Sequence[int],
    signed: bool,
    zero_points: Sequence[int],
    scheme: str,
    plain: Any = None,
    keeps: bool = False,
) -> Any:
    optional: dict[str, Any] = {"zero_points": list(zero_points)} if zero_points else {}
    if scheme != "symmetric":
        optional["scheme"] = scheme
    if keeps:
        optional["keeps"] = 1
    inputs = (x, steps) if plain is None else (x, steps, plain)
    return _FAKE_QUANT(
        *inputs, name=name, role=role, bits=list(bits), signed=int(signed), **optional
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about things that are none of the user's business."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def trace(model: nn.Module, input_shape: Sequence[int]) -> ir.Model:
    """Export a prepared `model` in evaluation mode; the batch dimension stays symbolic.

    Args:
        model: result of `qtool.nn.prepare.prepare.prepare`.
        input_shape: (C, H, W).

    Raises:
        UnsupportedError: torch.export does not accept the model.
    """
    exported = _export(model, input_shape, optimize=False)
    # The exporter leaves shape arithmetic and casts of constants; BatchNorm survives this.
    optimizer.fold_constants(exported)
    simplify_shapes(exported)
    insert_norms(exported, model)
    return exported


def trace_float(model: nn.Module, input_shape: Sequence[int]) -> ir.Model:
    """Export a float `model` as plain ONNX, BatchNorm folded."""
    return _export(model, input_shape, optimize=True)


def _export(model: nn.Module, input_shape: Sequence[int], optimize: bool) -> ir.Model:
    was_training = model.training
    # Channels-last weights would be traced as strided views.
    model.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    try:
        with _quiet(), baked(model):
            program = torch.onnx.export(
                model, (torch.zeros(2, *input_shape),), dynamo=True, opset_version=OPSET,
                optimize=optimize, verbose=False,
                custom_translation_table={torch.ops.qtool.fake_quant.default: _translate},
                dynamic_shapes=({0: torch.export.Dim("N")},),
                input_names=["input"], output_names=["logits"],
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UnsupportedError(f"torch.export refused the model: {reason}") from error
    finally:
        model.train(was_training)
    if program is None:
        raise UnsupportedError("torch.onnx.export returned nothing")
    for node in program.model.graph:
        node.metadata_props.clear()
    return program.model
