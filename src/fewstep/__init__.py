"""fewstep: train EDM-family diffusion models, distil them into few-step generators, sample, restore, measure.

`__init__.pyi` beside this file is the table of the public names. They are imported on first use, so that the command
line can show its help without importing torch.
"""

from fewstep.runtime.lazy import lazy

find, _, names = lazy(__name__, __file__)
__all__ = sorted([*names, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("fewstep")
    return find(name)


def __dir__() -> list[str]:
    return __all__
