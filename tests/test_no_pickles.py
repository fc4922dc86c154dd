"""Nothing that is read can run: no pickle is loaded but by torch's reader of weights alone."""

import ast
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import diffopt
from diffopt.errors import MetricError, PlanError, SourceError

ROOT = Path(diffopt.__file__).parent
MODULES = [p for p in sorted(ROOT.rglob("*.py")) if "assets" not in p.relative_to(ROOT).parts]
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LOADERS = {"load_state", "register_for_checkpointing", "load_accelerator_state", "load_custom_state", "read_pickle"}


def faults(code: str) -> list[str]:
    """What in a module's code reads a pickle."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom):
            reads = {a.name for a in node.names} - {"UnpicklingError"}
            found += [str(node.module)] if reads and str(node.module).partition(".")[0] in UNPICKLERS else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            whole, name = ast.unparse(node.func), node.func.attr
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            unsafe = whole == "torch.load" and given.get("weights_only") != "True"
            if unsafe or name in LOADERS or given.get("allow_pickle") == "True" or given.get("weights_only") == "False":
                found.append(whole)
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "accelerator.load_state(path)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_grep_finds_what_reads_pickles(code: str) -> None:
    assert faults(code)


def test_no_module_reads_a_pickle() -> None:
    assert len(MODULES) > 200
    assert {p: found for p in MODULES if (found := faults(p.read_text(encoding="utf-8")))} == {}


class Bomb:
    """A pickle that makes a directory when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_models_pickled_weights_run_nothing(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    from diffopt.pipeline.open import _read

    mark = tmp_path / "ran"
    AutoencoderKL(block_out_channels=(32,), norm_num_groups=32).save_config(tmp_path / "vae")
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        torch.save(Bomb(mark), tmp_path / "vae" / name)
    with pytest.raises(SourceError, match=r"^model\.source: cannot be read"):
        _read(AutoencoderKL, tmp_path / "vae")
    assert not mark.exists()
    torch.load(tmp_path / "vae" / "pytorch_model.bin", weights_only=False)  # the attack is one
    assert mark.exists()


def test_a_scorers_pickled_weights_run_nothing(tmp_path: Path) -> None:
    from transformers import CLIPConfig

    from diffopt.metrics import encoder, imagereward

    mark = tmp_path / "ran"
    CLIPConfig().save_pretrained(tmp_path)
    (tmp_path / "med_config.json").write_text("{}")
    for name in ("pytorch_model.bin", "ImageReward.pt"):
        torch.save(Bomb(mark), tmp_path / name)
    with pytest.raises(MetricError):
        encoder.load(tmp_path, "cpu")
    with pytest.raises(MetricError):
        imagereward.load(tmp_path)
    assert not mark.exists()


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """The tiny FLUX with the weights of a text encoder as a pickle."""
    import shutil

    from safetensors.torch import load_file
    from tiny import saved

    folder = shutil.copytree(saved("flux"), tmp_path / "pickled")
    weights = folder / "text_encoder" / "model.safetensors"
    torch.save(load_file(weights), folder / "text_encoder" / "pytorch_model.bin")
    weights.unlink()
    return folder


PLAIN = (
    "+recipe=emoji_fp8",
    "export=null",
    "eval=null",
    "model.height=32",
    "model.width=32",
    "model.max_sequence_length=16",
    "model.long_prompts=cut",
)


def test_a_folder_with_a_pickle_is_refused_unless_it_is_trusted(plan: Any, pickled: Path) -> None:
    with pytest.raises(PlanError, match=r"has the weights of text_encoder as a pickle alone .*model\.trust=pickle"):
        plan(*PLAIN, f"model.source={pickled}")
    trusted = plan(*PLAIN, f"model.source={pickled}", "model.trust=pickle")
    assert trusted.steps[0].name == "load"
    assert "trust" not in str(trusted.steps[0].identity["config"])  # the files tell what the weights are


def test_trusted_weights_are_those_of_the_pickle_and_run_nothing(pickled: Path, tmp_path: Path) -> None:
    from tiny import saved
    from transformers import CLIPTextModel

    from diffopt.pipeline.open import _read

    theirs = _read(CLIPTextModel, pickled / "text_encoder").state_dict()
    for name, x in _read(CLIPTextModel, saved("flux") / "text_encoder").state_dict().items():
        assert torch.equal(theirs[name], x)
    torch.save(Bomb(tmp_path / "ran"), pickled / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"^model\.source: cannot be read"):
        _read(CLIPTextModel, pickled / "text_encoder")
    assert not (tmp_path / "ran").exists()
