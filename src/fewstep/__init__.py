"""fewstep: train EDM-family diffusion models, distil them into few-step generators, sample, restore, measure.

`__init__.pyi` beside this file is the table of the public names. They are imported on first use, so that the command
line can show its help without importing torch.
"""

from importlib import import_module


def read_table(stub: str) -> dict[str, str]:
    """The module that defines each name, from the lines `from MODULE import NAME as NAME` of a stub."""
    with open(stub, encoding="utf-8") as lines:
        words = [line.split() for line in lines if line.startswith("from ")]
    return {name: module for _, module, _, name, *_ in words}


TABLE = read_table(f"{__file__.removesuffix('.py')}.pyi")
__all__ = sorted([*TABLE, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("fewstep")
    elif name in TABLE:
        module = TABLE[name]
        names = vars(import_module(module))
        value = names[name] if name in names else import_module(f"{module}.{name}")
    else:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
