"""The ``microseg`` command: one subcommand a flow. A subcommand's module is loaded when it is used, since that takes
seconds.
"""

import importlib
import sys

import typer

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "ingest": "Check a lab's folder and make it a version of the lab's dataset.",
    "land": "Say that a lab has landed: ingest, adapt, evaluate.",
    "train": "Train the first segmenter from labelled labs.",
    "adapt": "Adapt the production segmenter to a new lab, without its labels.",
    "evaluate": "Judge a candidate beside the production model.",
    "promote": "Put a candidate into production if the gate accepts.",
    "rollback": "Put the previous version back into production.",
    "rollout": "Look at what was promoted in MLflow, and settle it or put it back.",
    "history": "What was in production: when, by whom, why.",
    "segment": "Segment images: masks, outlines, overlays, measurements.",
    "export": "Export a model for other programs: bioimage.io, ONNX, TorchScript, PyTorch graph.",
    "story": "The whole of it on two made labs, or on two of your own.",
    "status": "What is in production and proposed, which labs there are, what runs next.",
    "doctor": "Look for what fails silently, each with its remedy.",
    "serve": "Register all flows as deployments and run what is scheduled.",
    "bridge": "Pass MLflow's word of a promotion on to Prefect.",
    "watch": "Tell Prefect of labs that land in the incoming folder.",
    "reconcile": "Settle what events missed.",
    "servers": "A Prefect server and an MLflow server on this machine.",
}


def main() -> None:
    """Run the command line."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        help="Keeps one image segmenter working across labs: adapts it to a new lab's images without labels, judges "
        "the candidate, offers it for promotion, and segments with the production model.",
    )
    for name, summary in COMMANDS.items():
        if name in sys.argv[1:2]:
            app.command(name)(importlib.import_module(f"flows.{name}").command)
        else:
            app.command(name, help=summary)(_not_loaded)
    app()


def _not_loaded() -> None:
    """Stands for a subcommand in the list of all."""


if __name__ == "__main__":
    main()
