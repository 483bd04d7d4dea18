"""Open a published model, publish one: `python -m brain_ldm.convert source=… out=… to=model`."""

from brain_ldm.command import command
from brain_ldm.conversion.config import ConvertConfig


@command("convert", ConvertConfig)
def main(config: ConvertConfig) -> None:
    """Convert a model."""
    from brain_ldm.conversion.convert import convert

    convert(config)


if __name__ == "__main__":
    main()
