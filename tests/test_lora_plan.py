"""What is known of adapters before anything is loaded: their fingerprints, their names, and what of them is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffopt import models
from diffopt.cli.main import main
from diffopt.errors import ConfigError, PlanError, SourceError
from diffopt.groups.lora_file import Adapter
from diffopt.jobs.nearest import differences, flat
from diffopt.store.source import Source, Sources, _only_file

QUERY = "transformer.transformer_blocks.0.attn.to_q"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHEAP = ("+recipe=emoji_fp8", "export=null", "eval=null")


def written(path: Path, *, width: int = 256, layer: str = QUERY, **more: Any) -> Path:
    """An adapter's file for a layer of the embedded model."""
    halves = {f"{layer}.lora_A.weight": np.zeros((4, width)), f"{layer}.lora_B.weight": np.zeros((256, 4))}
    path.parent.mkdir(exist_ok=True, parents=True)
    save_file({k: np.asarray(x, np.float16) for k, x in (halves | more).items()}, path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "mine.safetensors")


def given(path: object, **more: Any) -> str:
    rest = "".join(f", {k}: {v}" for k, v in more.items())
    return f'model.lora=[{{path: "{path}"{rest}}}]'


def keyed(plan: Any, *overrides: str, **more: Any) -> dict[str, str]:
    return {s.name: s.fingerprint for s in plan(*CHEAP, *overrides, **more).steps}


def by_content(tmp_path: Path) -> Any:
    return Sources(tmp_path / "sources.json").digest


# Fingerprints.


def test_no_adapter_is_keyed_as_before_there_were_any(plan: Any) -> None:
    assert keyed(plan, "model.lora=[]") == keyed(plan)
    assert "lora" not in plan(*CHEAP).steps[0].identity["config"]["model"]


def test_an_adapter_changes_every_step(plan: Any, file: Path) -> None:
    with_it, without = keyed(plan, given(file)), keyed(plan)
    assert set(with_it) == set(without)
    assert not set(with_it.values()) & set(without.values())


def test_a_scale_changes_the_key(plan: Any, file: Path) -> None:
    assert keyed(plan, given(file, scale=0.5)) != keyed(plan, given(file, scale=0.6))


def test_an_adapter_is_known_by_its_content_and_not_by_its_path(plan: Any, file: Path, tmp_path: Path) -> None:
    copy = written(tmp_path / "deep" / "other.safetensors")
    digest = by_content(tmp_path)
    one = keyed(plan, given(file), digest=digest)
    assert keyed(plan, given(copy.parent), digest=digest) == one
    assert keyed(plan, given(copy.parent, weight_name=copy.name, scale=1.0, backbone="transformer"), digest=digest) == one


def test_changed_content_changes_the_key(plan: Any, file: Path, tmp_path: Path) -> None:
    before = keyed(plan, given(file), digest=by_content(tmp_path))
    halves = {f"{QUERY}.lora_{half}.weight": np.ones(shape, np.float16) for half, shape in (("A", (4, 256)), ("B", (256, 4)))}
    save_file(halves, file)
    assert keyed(plan, given(file), digest=by_content(tmp_path)) != before


def test_the_order_of_adapters_counts_as_it_does_in_the_last_bits(plan: Any, file: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other.safetensors")
    orders = (f'model.lora=["{a}","{b}"]' for a, b in ((file, other), (other, file)))
    one, two = (keyed(plan, o) for o in orders)
    assert one != two


def test_an_adapter_on_the_hub_that_was_never_resolved_makes_every_step_pending(plan: Any) -> None:
    found = plan(*CHEAP, given("org/name"), digest=lambda s: None if s.adapter else "sha256:0")
    assert all(step.pending for step in found.steps)


def test_a_file_of_a_hub_repository_is_pinned_with_its_commit(tmp_path: Path) -> None:
    one = Adapter(path=f"org/name@{COMMIT}", weight_name="a.safetensors")
    other = Adapter(path=f"org/name@{COMMIT}")
    digest = by_content(tmp_path)
    assert digest(one.path) == f"hub:org/name@{COMMIT}:a.safetensors"
    assert digest(other.path) == f"hub:org/name@{COMMIT}:*.safetensors"


def test_a_repository_with_several_files_needs_a_weight_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / f"{name}.safetensors")
    assert _only_file(tmp_path, Source("org/name", adapter="b.safetensors")) == tmp_path / "b.safetensors"
    with pytest.raises(SourceError, match=r"holds 2 files .* set its weight_name, one of a.safetensors, b.safetensors"):
        _only_file(tmp_path, Source("org/name", adapter="*.safetensors"))


# Names.


def test_the_plan_names_the_adapters(plan: Any, file: Path) -> None:
    assert "the model is fused with mine.safetensors at scale 0.9" in plan(*CHEAP, given(file, scale=0.9)).notes


def test_a_path_alone_is_an_adapter_at_scale_1(plan: Any, file: Path) -> None:
    assert keyed(plan, f'model.lora=["{file}"]') == keyed(plan, given(file, scale=1.0))


def test_what_changed_of_an_adapter_is_named_and_nothing_else() -> None:
    old, new = ({"lora": [{"path": "sha256:0", "scale": x}]} for x in (0.3, 0.4))
    assert differences(flat(old), flat(new)) == ["lora.0.scale 0.3 -> 0.4"]


def test_a_sweep_over_scales_is_jobs_named_by_them(file: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    scales = ",".join(f"[{{path: {file.name}, scale: {s}}}]" for s in (0.5, 1.0))
    main(["plan", "--multirun", *CHEAP, f"model.lora={scales}"])
    said = capsys.readouterr().out
    assert "model.lora=[{path:mine.safetensors,scale:0.5}]  7 of 7 steps to run" in said
    assert "2 jobs, 2 distinct" in said


# Refused.


@pytest.mark.parametrize(
    ("override", "where", "what"),
    [
        (given("nowhere.safetensors"), "model.lora.0.path", "is neither a file nor a directory"),
        (given("README.md"), "model.lora.0.path", "is neither a file nor a directory"),
        ("model.lora=[{path: 3}]", "model.lora.0.path", "is not an adapter"),
        (given("org/name", weight_name="x.bin"), "model.lora.0", "weight_name is not the name of a .safetensors file"),
        (given("org/name", scale="big"), "model.lora.0.scale", "must be a valid number"),
        (given("org/name", scale="true"), "model.lora.0.scale", "must be a valid number"),
        (given("org/name", scale="inf"), "model.lora.0.scale", "must be a finite number"),
        (given("org/name", scal=1), "model.lora.0.scal", "no such key"),
        ('model.lora=["org/name","org/name"]', "model.lora", "names one twice"),
    ],
)
def test_a_wrong_entry_is_refused(plan: Any, override: str, where: str, what: str) -> None:
    with pytest.raises(ConfigError) as e:
        plan(*CHEAP, override)
    line = str(e.value)
    assert line.startswith(f"{where}: {what}")
    assert "(got " in line
    assert "; " in line


def test_a_directory_with_several_files_needs_a_weight_name(plan: Any, file: Path, tmp_path: Path) -> None:
    written(tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"model\.lora\.0: holds 2 .* set its weight_name, one of mine.* other"):
        plan(*CHEAP, given(tmp_path))
    assert keyed(plan, given(tmp_path, weight_name="mine.safetensors")) == keyed(plan, given(file))


def test_a_pickled_file_is_refused(plan: Any, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"is not a \.safetensors file .*; convert it"):
        plan(*CHEAP, given(tmp_path / "x.bin"))


def refusal(plan: Any, *overrides: str) -> str:
    with pytest.raises(PlanError) as e:
        plan(*CHEAP, *overrides)
    return str(e.value)


def test_a_file_that_is_not_whole_is_refused(plan: Any, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    assert refusal(plan, given(file)).startswith("model.lora.0.path: cannot be read as safetensors: ")


def test_a_whole_model_is_no_adapter(plan: Any, tmp_path: Path) -> None:
    save_file({"transformer.x.weight": np.zeros(3, np.float16)}, tmp_path / "model.safetensors")
    said = refusal(plan, given(tmp_path / "model.safetensors"))
    assert said.startswith("model.lora.0.path: holds no LoRA (got")
    assert "1 tensors, the first transformer.x.weight" in said


def test_a_dora_is_refused(plan: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "dora.safetensors", **{f"{QUERY}.dora_scale": np.zeros(256)})
    assert "is a DoRA, whose magnitudes diffusers would leave out" in refusal(plan, given(path))


def test_another_size_is_seen_in_the_headers(plan: Any, tmp_path: Path) -> None:
    said = refusal(plan, given(written(tmp_path / "wide.safetensors", width=3072)))
    assert said.startswith("model.lora.0: was trained on another architecture: 1 of its 1 layers have other sizes, the first")
    assert f"{QUERY}: 256 x 3072, in the model 256 x 256 (got" in said


def test_layers_that_are_not_there_are_seen_in_the_headers(plan: Any, tmp_path: Path) -> None:
    said = refusal(plan, given(written(tmp_path / "none.safetensors", layer="transformer.blocks.9.x")))
    assert said.startswith("model.lora.0: matches no layer of the model (got")
    more = {f"transformer.extra.lora_{half}.weight": np.zeros((4, 4)) for half in "AB"}
    said = refusal(plan, given(written(tmp_path / "more.safetensors", **more)))
    assert said.startswith(
        "model.lora.0: 2 of its 4 keys match no layer of the model, the first transformer.extra.lora_A.weight"
    )


def test_a_backbone_that_the_family_lacks_is_refused(plan: Any, file: Path) -> None:
    assert refusal(plan, given(file, backbone="unet")).startswith(
        "model.lora.0.backbone: flux has no such backbone (got 'unet')"
    )


def test_a_family_without_a_loader_refuses(plan: Any, file: Path, monkeypatch: Any) -> None:
    from dataclasses import replace

    plain = models.family
    monkeypatch.setattr(models, "family", lambda name: replace(plain(name), lora=False))
    assert refusal(plan, given(file)).startswith("model.lora: diffusers has no LoRA loader for FluxPipeline (got")


def test_an_adapter_in_the_place_of_the_list_is_told_how_to_be_one(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["plan", *CHEAP, "model.lora={path: a.safetensors}"])
    assert capsys.readouterr().err == (
        "model.lora: is a list in the recipe (got {path: a.safetensors}); write it as one: [{path: a.safetensors}]\n"
    )
