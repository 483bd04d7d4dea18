"""The model card: what a stranger must know before using a model."""

from brain_ldm.models import Model

WHAT = {
    "autoencoder": "Compresses T1w brain volumes to latents and back.",
    "diffusion": "Draws T1w brain volumes that never lived, given covariates.",
    "generator": "Draws T1w brain volumes that never lived, of any kind that it was trained on.",
    "segmenter": "Segments T1w brain volumes; gives ventricular and brain volume in mm³.",
    "brain_age": "Predicts age in years from a T1w brain volume.",
    "embedding": "Turns T1w brain volumes into short vectors, alike for views of one brain.",
}


def model_card(model: Model, best: str, metrics: dict[str, float], health: str | None) -> str:
    """Return MODEL_CARD.md of a freshly trained model.

    Args:
        model: with `config.trained_on` filled in.
        best: name of the validation metric that chose its step.
        metrics: on the validation split, at that step; empty where there is none.
        health: what an autoencoder's latent is like.
    """
    config = model.config
    parameters = sum(p.numel() for p in model.network.parameters()) / 1e6
    grid = model.grid
    lines = [
        f"# {config.kind.replace('_', ' ').capitalize()} model",
        "",
        WHAT[config.kind],
        "",
        f"- Network: {parameters:.2f} M parameters; `config.yaml` says how it is built.",
        f"- Images: {grid}, MNI space, intensities 0..1.",
        f"- Trained on: {config.trained_on['cohort']}, {config.trained_on['training_rows']} rows "
        f"of its training split, {config.trained_on['steps']} steps, "
        f"seed {config.trained_on['seed']}.",
        f"- Cohort hash: `{config.trained_on['cohort_hash']}`",
    ]
    if config.kind == "diffusion":
        lines += ["", "| covariate | unit | 0 is | 1 is |", "|---|---|---|---|"]
        lines += [
            f"| {c['name']} | {c['unit'] or '-'} | {c['low']:g} | {c['high']:g} |"
            for c in config.covariates
        ]
    if metrics:
        lines += [
            "",
            f"The weights are those of step {config.trained_on['best_step']}, whose {best} was the "
            "lowest. On the validation split:",
            "",
        ]
        lines += [f"- {name}: {value:.4g}" for name, value in metrics.items()]
    if health:
        lines += ["", "## Latent", "", health]
    lines += ["", "For research; not a medical device, not for decisions about a person.", ""]
    return "\n".join(lines)
