"""Ways to damage an ONNX file that stay a well-formed protobuf: one function a kind.

Each takes the model and a random generator, and changes the model in place.
"""

from onnx import AttributeProto, TensorProto, helper, numpy_helper

HUGE = [2**40, 2**31, 2**62]


def pick(rng, items):
    return items[int(rng.integers(len(items)))]


def nodes(model, *op_types):
    return [n for n in model.graph.node if not op_types or n.op_type in op_types]


def drop_input(model, rng):
    node = pick(rng, nodes(model))
    del node.input[int(rng.integers(len(node.input)))]


def blank_input(model, rng):
    node = pick(rng, nodes(model))
    node.input[int(rng.integers(len(node.input)))] = ""


def cross_inputs(model, rng):
    """An input becomes another tensor of the graph: often a cycle or another type."""
    node, other = pick(rng, nodes(model)), pick(rng, nodes(model))
    node.input[int(rng.integers(len(node.input)))] = other.output[0]


def constant_input(model, rng):
    node, other = pick(rng, nodes(model)), pick(rng, model.graph.initializer)
    node.input[int(rng.integers(len(node.input)))] = other.name


def extra_input(model, rng):
    pick(rng, nodes(model)).input.append(pick(rng, model.graph.initializer).name)


def unknown_input(model, rng):
    node = pick(rng, nodes(model))
    node.input[int(rng.integers(len(node.input)))] = "nowhere"


def duplicate_output(model, rng):
    pick(rng, nodes(model)).output[0] = pick(rng, nodes(model)).output[0] + ""


def rename_output(model, rng):
    pick(rng, nodes(model)).output[0] = pick(rng, ["", "renamed", "input"])


def drop_node(model, rng):
    del model.graph.node[int(rng.integers(len(model.graph.node)))]


def shuffle_nodes(model, rng):
    order = rng.permutation(len(model.graph.node))
    shuffled = [
        type(model.graph.node[0]).FromString(model.graph.node[i].SerializeToString())
        for i in order
    ]
    del model.graph.node[:]
    model.graph.node.extend(shuffled)


def drop_initializer(model, rng):
    del model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]


def change_type(model, rng):
    tensor = pick(rng, model.graph.initializer)
    tensor.data_type = int(rng.integers(0, 30))


def recast_initializer(model, rng):
    """The same values in another type, a valid tensor."""
    tensor = pick(rng, model.graph.initializer)
    kind = pick(
        rng, ["float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool"]
    )
    array = numpy_helper.to_array(tensor).astype(kind)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def reshape_initializer(model, rng):
    tensor = pick(rng, model.graph.initializer)
    array = numpy_helper.to_array(tensor).reshape(-1)
    shape = pick(rng, [(-1,), (1, -1), (-1, 1, 1), (1, 1, 1, -1, 1)])
    tensor.CopyFrom(numpy_helper.from_array(array.reshape(shape), tensor.name))


def cut_initializer(model, rng):
    """A shorter or longer constant."""
    tensor = pick(rng, model.graph.initializer)
    array = numpy_helper.to_array(tensor)
    array = array.reshape(-1)[: int(rng.integers(0, 3))] if rng.random() < 0.5 else array[None]
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def empty_data(model, rng):
    """A tensor that promises more than it holds."""
    tensor = pick(rng, model.graph.initializer)
    for field in ("raw_data", "float_data", "int32_data"):
        tensor.ClearField(field)


def huge_initializer(model, rng):
    tensor = pick(rng, model.graph.initializer)
    del tensor.dims[:]
    tensor.dims.extend(pick(rng, [[n] for n in HUGE] + [[2**20, 2**20], [-1], [-(2**40), 3]]))


def change_dimension(model, rng):
    value = pick(rng, [*model.graph.input, *model.graph.output])
    dims = value.type.tensor_type.shape.dim
    pick(rng, dims).dim_value = pick(rng, [*HUGE, 0, -1, -(2**40), 1, 7])


def change_rank(model, rng):
    value = pick(rng, [*model.graph.input, *model.graph.output])
    dims = value.type.tensor_type.shape.dim
    if rng.random() < 0.5:
        del dims[int(rng.integers(len(dims)))]
    else:
        dims.add().dim_value = 2


def forget_shape(model, rng):
    pick(rng, [*model.graph.input, *model.graph.output]).type.tensor_type.ClearField("shape")


def forget_type(model, rng):
    pick(rng, [*model.graph.input, *model.graph.output]).ClearField("type")


def change_io_type(model, rng):
    value = pick(rng, [*model.graph.input, *model.graph.output])
    value.type.tensor_type.elem_type = int(rng.integers(0, 30))


def external_data(model, rng):
    tensor = pick(rng, model.graph.initializer)
    for field in ("raw_data", "float_data", "int32_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = (
        "location",
        pick(rng, ["other.bin", "../../secret", "/etc/passwd"]),
    )


def unknown_opset(model, rng):
    model.opset_import[0].version = pick(rng, [0, -3, 1, 6, 9, 99, 2**40])


def no_opset(model, rng):
    del model.opset_import[:]


def other_domain(model, rng):
    pick(rng, nodes(model)).domain = pick(rng, ["nowhere", "com.microsoft", "ai.onnx.ml"])


def other_operator(model, rng):
    names = ["Relu", "Sigmoid", "If", "Loop", "Cast", "Reshape", "Mul", "", "Clip", "Gemm"]
    pick(rng, nodes(model)).op_type = pick(rng, names)


def bad_attribute(model, rng):
    """An attribute of another type or a senseless value."""
    node = pick(rng, [n for n in nodes(model) if n.attribute])
    attribute = pick(rng, node.attribute)
    value = pick(
        rng, [0, -1, 2**40, 1.5, "x", [], [0, 0], [-1, 5], [1] * 9, [2**40] * 2, [0.5]]
    )
    attribute.CopyFrom(
        helper.make_attribute(attribute.name, value, attr_type=AttributeProto.INTS)
        if value == []
        else helper.make_attribute(attribute.name, value)
    )


def drop_attribute(model, rng):
    node = pick(rng, [n for n in nodes(model) if n.attribute])
    del node.attribute[int(rng.integers(len(node.attribute)))]


def extra_attribute(model, rng):
    name, value = pick(
        rng,
        [
            ("strides", [0, 0]), ("strides", [1]), ("dilations", [2**40, 1]), ("group", 0),
            ("group", -1), ("group", 7), ("axis", 9), ("block_size", 3), ("auto_pad", "SAME"),
            ("pads", [-9, 0, 0, 0]), ("pads", [2**40] * 4), ("ceil_mode", 1), ("bogus", 1),
        ],
    )  # fmt: skip
    pick(rng, nodes(model)).attribute.append(helper.make_attribute(name, value))


def bad_scale(model, rng):
    scales = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    tensor = pick(rng, scales)
    array = numpy_helper.to_array(tensor).copy()
    bad = pick(rng, [0.0, -0.0, -0.1, float("nan"), float("inf"), float("-inf")])
    array.reshape(-1)[int(rng.integers(array.size))] = bad
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def bad_metadata(model, rng):
    text = pick(
        rng,
        ["", "{", "[]", "null", "7", '{"yq": 8}', '{"yq": [0, 8]}', '{"yq": [-1, 8]}',
         '{"yq": [99, 8]}', '{"yq": [8, 1000000]}', '{"yq": [2, 8]}', '{"yq": [8, 0]}',
         "[" * 100000],
    )  # fmt: skip
    del model.metadata_props[:]
    helper.set_model_props(model, {"qtool.bits": text})


def extra_output(model, rng):
    model.graph.output.append(model.graph.output[0])


def no_output(model, rng):
    del pick(rng, [model.graph.output, model.graph.input])[:]


def intermediate_output(model, rng):
    model.graph.output[0].name = pick(rng, nodes(model)).output[0]


def constant_output(model, rng):
    model.graph.output[0].name = pick(rng, ["w", "input", "xs"])


MUTATIONS = [
    value for value in list(globals().values())
    if callable(value) and getattr(value, "__module__", "") == __name__
    and value.__name__ not in ("pick", "nodes")
]  # fmt: skip
