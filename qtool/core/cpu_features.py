"""Features of CPUs that generated code may need, by architecture; names are LLVM's."""

# What LLVM or a kernel of qtool may use by itself. Left out: what only an operating system or
# hand-written code uses (and virtual machines often hide), and tuning flags.
GENERATED = {
    "x86_64": (
        "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi",
        "bmi2", "lzcnt", "movbe", "tbm", "xop", "fma4", "gfni", "vaes", "vpclmulqdq",
        "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "avx512ifma", "avx512vbmi",
        "avx512vbmi2", "avx512vnni", "avx512bitalg", "avx512vpopcntdq", "avx512bf16",
        "avx512fp16", "avxvnni", "avxvnniint8", "avxvnniint16", "avxifma", "avxneconvert",
        "avx10.1", "avx10.2", "amx-tile", "amx-int8", "amx-bf16", "egpr", "ndd", "ccmp",
    ),
    "aarch64": (
        "neon", "crc", "lse", "rdm", "fullfp16", "dotprod", "i8mm", "bf16", "fp16fml", "sve",
        "sve2", "sme",
    ),
}  # fmt: skip
