"""What is said about a converted model, for people."""

from brain_ldm.models import Diffusion

FOOTER = "For research; not a medical device, not for decisions about a person."


def published_cards(model: Diffusion, older: bool, unsaid: list[str]) -> tuple[str, str]:
    """MODEL_CARD.md of the published model and of its autoencoder.

    Args:
        model: as read from the bundle, with `config.trained_on` filled in.
        older: whether the weights had the names of MONAI Generative Models.
        unsaid: what the bundle does not say, and what stands in its place.
    """
    trained_on = model.config.trained_on
    lines = [
        f"- Converted from the MONAI bundle `{trained_on['bundle']}`: Pinaya et al. 2022, "
        "*Brain Imaging Generation with Latent Diffusion Models*, arXiv 2209.07162.",
        f"- Trained on: {trained_on['cohort']}, 31,740 T1w volumes in the paper; whole heads.",
        f"- Images: {model.grid}, intensities 0..1.",
        f"- Weights had the names of {'MONAI Generative Models' if older else 'MONAI'}:",
        *(f"  `{name}`, sha256 `{digest}`" for name, digest in trained_on["sha256"].items()),
    ]
    autoencoder = ["# Autoencoder model", "", "Compresses T1w volumes to latents and back.", ""]
    diffusion = ["# Diffusion model", "", "Draws T1w volumes that no scanner saw.", ""]
    ranges = [
        *("", "| covariate | unit | 0 is | 1 is |", "|---|---|---|---|"),
        *(
            f"| {c['name']} | {c['unit'] or '-'} | {c['low']:.10g} | {c['high']:.10g} |"
            for c in model.config.covariates
        ),
    ]
    assumed = ["", "## What the bundle does not say", "", *(f"- {line}" for line in unsaid)]
    return (
        "\n".join([*diffusion, *lines, *ranges, *assumed, "", FOOTER, ""]),
        "\n".join([*autoencoder, *lines, "", FOOTER, ""]),
    )


def licence_section(licence: str | None) -> str:
    """The section about the licence of the weights."""
    stated = licence or (
        "Not stated: ask those who trained the model before you use or share its weights."
    )
    return f"## Licence\n\n{stated}\n"
