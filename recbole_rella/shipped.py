"""The files that are shipped with the package: properties/, with defaults, templates, data sets, LLMs and variants."""

from pathlib import Path


def properties_folder():
    """The folder of our YAML files and templates.

    It lies beside the package in a checkout or an editable install, and inside it once installed from a wheel.
    """
    inside = Path(__file__).parent / "properties"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "properties"


def shipped_templates():
    """The shipped templates of prompts and of chat formats (properties/prompt, properties/chat), list of pathlib.Path."""
    return [path for room in ("prompt", "chat") for path in sorted((properties_folder() / room).glob("*.jinja"))]


def variant_files():
    """The shipped variants of ReLLa (properties/variant): name -> path."""
    return {path.stem: path for path in sorted((properties_folder() / "variant").glob("*.yaml"))}


def tuned_file(label, dataset):
    """Where the settings lie that were chosen on validation for an entry of --model on a data set (properties/tuned)."""
    return properties_folder() / "tuned" / Path(str(dataset)).name / f"{label}.yaml"
