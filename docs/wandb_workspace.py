"""Build the project's dashboard at Weights & Biases.

    python docs/wandb_workspace.py entity/project

needs `pip install wandb-workspaces` and an account (`wandb login`). Each call makes a new saved
view. docs/dashboards.md says what the metrics mean.
"""

import sys

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as ws

STEP = "trainer/global_step"  # Lightning's name for x
# By section: each plot's title and metrics.
PLOTS = {
    "Validation": {
        "Reconstruction loss": ["val/reconstruction"],
        "Reconstruction terms": ["val/l1", "val/perceptual"],
        "PSNR (dB)": ["val/psnr"],
        "Diffusion loss": ["val/loss"],
        "Brain age error (years)": ["val/mae"],
        "Volume error (%)": ["val/ventricular_volume_error", "val/brain_volume_error"],
    },
    "Losses": {
        "Total": ["train/loss", "train/generator", "train/mae"],
        "L1": ["train/l1"],
        "Perceptual": ["train/perceptual"],
        "KL": ["train/kl"],
        "Adversarial": ["train/adversarial", "train/discriminator"],
        "Discriminator accuracy": ["train/discriminator_accuracy"],
        "Weights": ["weight/l1", "weight/perceptual", "weight/adversarial", "weight/kl"],
    },
    "Learning rates and gradients": {
        "Learning rate": ["lr/network", "lr/generator", "lr/discriminator"],
        "Gradient norm": ["gradient/norm", "gradient/generator", "gradient/discriminator"],
    },
    "Speed and memory": {
        "Samples a second": ["speed/samples_per_second"],
        "Seconds a step": ["speed/seconds_per_step"],
        "Memory (GiB)": ["memory/resident_gib", "memory/allocated_gib", "memory/reserved_gib"],
    },
}
PICTURES = ["pictures/reconstructions", "pictures/samples", "pictures/sweep"]


def workspace(entity: str, project: str) -> ws.Workspace:
    """Return the dashboard of a project, not yet saved."""
    sections = [
        ws.Section(
            name=name,
            panels=[
                panels.LinePlot(title=title, x=STEP, y=metrics) for title, metrics in plots.items()
            ],
            is_open=True,
        )
        for name, plots in PLOTS.items()
    ]
    browsers = [panels.MediaBrowser(media_keys=[key], num_columns=1) for key in PICTURES]
    sections.insert(1, ws.Section(name="Pictures", panels=browsers, is_open=True))
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Training",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP),
    )


def main() -> None:
    """Save the dashboard and print its address."""
    match sys.argv[1:]:
        case [path] if path.count("/") == 1:
            print(workspace(*path.split("/")).save().url)
        case _:
            sys.exit("usage: python docs/wandb_workspace.py entity/project")


if __name__ == "__main__":
    main()
