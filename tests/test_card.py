"""Model cards: every figure is a run's, what is simulated is called so, and nothing of this machine leaves it."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from shipped import CHECKPOINT, DEPLOYED, PIPELINE, export, ran, step, store_of
from sweeps import MACHINE
from test_layouts import made
from test_report import artifact
from tiny import bench

from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.json_file import typed
from diffopt.files.pipeline import FusedAdapter, PipelineFile
from diffopt.files.run import RunStep
from diffopt.groups.export import LAYOUTS
from diffopt.report import run_page
from diffopt.report.run_directory import Run
from diffopt.shipping import evidence, licence, private, run_card
from diffopt.shipping.card import card as written
from diffopt.shipping.consumers import CONSUMERS, Consumer, Load
from diffopt.shipping.markdown import cell
from diffopt.shipping.subject import Subject, called
from diffopt.shipping.ways import WAYS
from diffopt.store import assets
from diffopt.store.store import Store


def shipped(root: Path, *runs: dict[str, Any], name: str = "fp8", way: str = "hf", source: Path | None = None) -> str:
    """The card of a tiny FLUX in FP8 that these runs have scored."""
    b = bench()
    store = store_of(b, name, root, made(b, name))
    for i, how in enumerate(runs):
        ran(store, b, root / f"runs/mine/{i}", **how)
    export(store, CHECKPOINT, root / "out", "--as", way, f"--source={source or b.source}", "--backbone-only")
    return (root / "out/README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shipped(tmp_path_factory.mktemp("card"), {"psnr": 33.0})


def test_the_front_matter_is_what_the_hub_reads(card: str) -> None:
    data = ModelCard(card).data
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "text-to-image"
    assert {"diffopt", "quantized", "flux", "fp8", "simulated"} <= {*data.tags}
    assert data.base_model is None  # a directory is no model on the hub
    results = {r.metric_type: r for r in data.eval_results}
    assert {*results} == {"psnr", "clip"}
    assert results["psnr"].metric_value == 33.0
    assert results["psnr"].dataset_name == "3 prompts of prompts_eval.json"
    assert "PSNR to full precision: 33.0" in results["psnr"].metric_name
    assert "n=" in results["psnr"].metric_name


def test_metrics_have_intervals_the_difference_and_their_number(card: str, tmp_path: Path) -> None:
    (row,) = [line for line in card.splitlines() if line.startswith("| CLIP score |")]
    assert re.search(r"80\.\d+ \[.*\] \| 82\.\d+ \[.*\] \| -2\.\d+ \[-.*\] \| higher \| \d+ \|", row)


def test_a_simulated_format_is_called_so_and_has_no_speed(card: str) -> None:
    assert "**Simulated**" in card
    assert "No speed is claimed" in card
    assert " x end to end" not in card


def test_a_speed_is_given_with_its_machine(tmp_path: Path) -> None:
    b = bench()
    store = store_of(b, "fp8", tmp_path)
    steps = [
        step("load", "pipeline", PIPELINE),
        step("quantize", "checkpoint", CHECKPOINT, "load"),
        step("sample", "images", "2" * 16, "quantize"),
        step("score", "metrics", "3" * 16, "sample"),
        step("time", "latency", "4" * 16, "quantize"),
    ]
    run = ran(store, b, tmp_path / "run", steps=steps)
    index = json.loads((run / "sample/images.json").read_text()) | {"simulated": False, "runtime": "native"}
    (run / "sample/images.json").write_text(json.dumps(index))
    side = {"milliseconds_per_step": None, "seconds_per_call": []}
    timed = {
        "runtime": "native", "machine": {**MACHINE, "gpus": ["NVIDIA L4"]}, "batch_size": 1, "steps": 20, "warmup": 1,
        "repeats": 3, "baseline": {**side, "seconds_per_image": {"median": 2.0, "p10": 2.0, "p90": 2.0}},
        "candidate": {**side, "seconds_per_image": {"median": 1.0, "p10": 1.0, "p90": 1.0}},
        "speedup": {"end_to_end": {"mean": 2.0, "low": 1.9, "high": 2.1, "n": 3}, "per_step": None},
    }  # fmt: skip
    artifact(run, "time", {"latency.json": timed})
    export(store, CHECKPOINT, tmp_path / "out", "--as", "hf", f"--source={b.source}")
    text = (tmp_path / "out/README.md").read_text()
    assert "Speed on NVIDIA L4 by diffopt's `native`" in text
    assert "1 s a picture, full precision 2 s; 2.00 [1.90, 2.10] x end to end, faster than its baseline" in text
    assert "Simulated" not in text
    assert "simulated" not in ModelCard(text).data.tags


def test_a_checkpoint_that_no_run_has_scored_says_so_and_how(tmp_path: Path) -> None:
    text = shipped(tmp_path)
    assert "**It was not scored.**" in text
    assert "format=fp8 calib=OPTION export=huggingface eval=OPTION" in text
    assert ModelCard(text).data.eval_results is None
    assert "## What was measured" not in text


def test_a_checkpoint_that_was_only_made_can_be_scored_by_the_command_that_made_it(tmp_path: Path) -> None:
    steps = [step("load", "pipeline", PIPELINE), step("quantize", "checkpoint", CHECKPOINT, "load")]
    text = shipped(tmp_path, {"steps": steps, "overrides": ["format=fp8", "eval=null"]})
    assert "diffopt +recipe=mine format=fp8 eval=OPTION" in text
    assert "Calibrated on 4 prompts" in text


def test_every_run_is_there_the_newest_first(tmp_path: Path) -> None:
    b = bench()
    store = store_of(b, "fp8", tmp_path)
    for i, psnr in enumerate((31.0, 36.0)):
        run = ran(store, b, tmp_path / f"runs/mine/{i}", psnr=psnr)
        os.utime(run / "run.json", (1e9 + 86400 * i, 1e9 + 86400 * i))
    ran(store, b, tmp_path / "runs/other/0", psnr=99.0, steps=[step("quantize", "checkpoint", "e" * 16)])
    export(store, CHECKPOINT, tmp_path / "out", "--as", "hf", f"--source={b.source}")
    text = (tmp_path / "out/README.md").read_text()
    assert re.findall(r"^### (.*)$", text, re.M) == ["mine, 2001-09-10 01:46 UTC", "mine, 2001-09-09 01:46 UTC"]
    assert text.index("| 36.") < text.index("| 31.")
    assert "99." not in text
    assert ModelCard(text).data.eval_results[0].metric_value == 36.0


# Which run has scored what.


def test_a_run_whose_candidate_is_another_checkpoint_scores_this_one_only_where_it_is_compared(tmp_path: Path) -> None:
    """A trained checkpoint is made of this one, and `eval.compare=[ptq]` draws with this one too."""
    store, b = Store(tmp_path / "store"), bench()
    steps = [
        step("load", "pipeline", PIPELINE),
        step("quantize", "checkpoint", CHECKPOINT, "load"),
        step("train", "checkpoint", "e" * 16, "load", "quantize"),
        step("reference", "reference", "1" * 16, "load"),
        step("sample", "images", "2" * 16, "load", "train"),
        step("sample@ptq", "images", "5" * 16, "load", "quantize"),
    ]
    run = Run(ran(store, b, tmp_path / "run", steps=steps))
    assert [x.ending for x in evidence.of_run(run, CHECKPOINT)] == ["@ptq"]
    assert [x.ending for x in evidence.of_run(run, "e" * 16)] == [""]
    assert [x.gates for x in evidence.of_run(run, CHECKPOINT)] == [[]]


def test_a_graph_is_of_the_checkpoint_that_it_was_exported_from() -> None:
    steps = [
        step("quantize", "checkpoint", CHECKPOINT, "load"),
        step("export.baseline", "onnx", "6" * 16, "load"),
        step("export", "onnx", "7" * 16, "quantize"),
        step("sample", "images", "2" * 16, "load", "export"),
        step("time", "latency", "8" * 16, "export", "export.baseline"),
    ]
    own = [typed(RunStep, s) for s in steps]
    assert evidence.checkpoint_of("sample", own) == evidence.checkpoint_of("time", own) == CHECKPOINT
    assert evidence.checkpoint_of("export.baseline", own) is None


# What stays here.


def test_a_card_has_no_local_path_no_secret_and_no_name_of_the_machine(tmp_path: Path) -> None:
    overrides = [
        "model.source=/home/someone/my models/flux",
        "+hub_token=hf_abcdefghijklmnop",
        "eval.prompts=~/prompts.txt",
        "+model.lora=[{path: '/data/of mine/a.safetensors'}]",
        "format.exclude=[a.b]",
    ]
    text = shipped(tmp_path, {"overrides": overrides})
    for secret in (
        "/home",
        "someone",
        "/data",
        "hf_abc",
        "letmein",
        str(tmp_path),
        str(Path.home()),
        "my models",
        MACHINE["cpu"],
    ):
        assert secret not in text, secret
    assert "model.source=flux" in text
    assert "'format.exclude=[a.b]'" in text
    assert "4 prompts of `my prompts.txt`" in text


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("see /home/me/x/y.txt, or ~/z", "see y.txt, or z"),
        ("../up/there and ./here", "there and here"),
        ("a/b is no path of this machine, nor is 1/2", "a/b is no path of this machine, nor is 1/2"),
        ("https://user:pass@host/x?y", "https://host/x?y"),
        ("https://huggingface.co/org/name", "https://huggingface.co/org/name"),
        ("asset:emoji/prompts.json", "asset:emoji/prompts.json"),
        ('"/a dir/with spaces/f.json"', '"f.json"'),
        ("hf_AbCdEfGhIjKlMn and sk-abcdefghijkl", "(left out) and (left out)"),
        ("org/name@0123abc", "org/name@0123abc"),
    ],
)
def test_a_text_keeps_all_but_where_things_lie(given: str, left: str) -> None:
    assert private.text(given) == left


def test_what_a_run_was_given_is_text_and_no_markup(tmp_path: Path) -> None:
    assert cell("a|b\n<script>[x](y) `z`") == r"a\|b \<script\>\[x\](y) \`z\`"
    text = shipped(tmp_path, {"overrides": ["x=```\n<script>"]})
    assert "\n```\n<script>" not in text.replace("```sh\n", "").split("## How it was made")[0]
    assert "<script>" not in text.split("```")[0]


# The licence.


def test_the_licence_of_the_base_is_said_and_copied(tmp_path: Path) -> None:
    source = tmp_path / "flux"
    shutil.copytree(bench().source, source)
    head = "license: other\nlicense_name: flux-1-dev\nlicense_link: LICENSE.md"
    (source / "README.md").write_text(f"---\n{head}\n---\n# Flux")
    (source / "LICENSE.md").write_text("the text")
    assert licence.of(source).line == "That of the base model: flux-1-dev; its text is in [LICENSE.md](LICENSE.md)."
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    found = licence.of(source)
    assert (found.id, found.link) == ("apache-2.0", None)
    (source / "README.md").write_text("---\nlicense: [broken\n---\n")
    assert licence.of(source).id == "other"


def test_the_embedded_model_keeps_its_notice_with_it() -> None:
    found = licence.of(assets.locate("asset:emoji/emoji-flux"))
    assert [p.name for p in found.files] == ["NOTICE.md"]
    assert (found.id, found.link) == ("other", "NOTICE.md")


def test_a_model_of_the_hub_is_the_base_that_the_hub_links(tmp_path: Path) -> None:
    subject = subject_of(source="hub:org/name@0123456789abcdef0123456789abcdef01234567:variant=fp16")
    assert subject.hub == ("org/name", "0123456789abcdef0123456789abcdef01234567")
    data = ModelCard(written(subject, [], [], None)).data
    assert data.base_model == "org/name"
    assert data["base_model_relation"] == "quantized"


def subject_of(**pinned: Any) -> Any:
    b = bench()
    head = replace(PipelineFile.read(b.pipeline().path), **pinned)
    return Subject(
        way=WAYS["hf"], pinned=head, head=CheckpointFile.read(b.checkpoint("fp8").path), training=None, made={}, lineage={},
        licence=licence.Licence(), model=called(head, "/home/me/flux"), bytes=1000, whole=True,
    )  # fmt: skip


def test_adapters_are_named_without_their_place() -> None:
    adapter = FusedAdapter(
        name="/home/me/style.safetensors", source="sha256:1", scale=0.5, backbone=None, hits={"transformer": 3}
    )
    text = written(subject_of(lora=(adapter,)), [], [], None)
    assert "style.safetensors (`sha256:1`) at scale 0.5, fused into 3 layers of transformer" in text
    assert "/home" not in text


# Who reads it.


def load(kind: str, *formats: str, **how: Any) -> Load:
    way = next(w for w in WAYS.values() if w.kind == kind)
    about = {"backbones": ("transformer",), "backbone_class": "T", "pipeline": "P", "dtype": "bfloat16"}
    return Load(**{"way": way, "formats": frozenset(formats), **about, "share_scales": True, "whole": True, **how})


def consumer(name: str) -> Consumer:
    return next(c for c in CONSUMERS if c.name == name)


@pytest.mark.parametrize(
    ("name", "given", "refusal"),
    [
        ("vLLM-Omni", load("huggingface", "fp8"), None),
        ("vLLM-Omni", load("huggingface", "fp8", "nvfp4"), None),
        ("vLLM-Omni", load("huggingface", "int8_sq"), "`pre_quant_scale`"),
        ("vLLM-Omni", load("huggingface", "fp8", whole=False), "takes a whole pipeline"),
        ("vLLM-Omni", load("huggingface", "fp8", share_scales=False), "one scale of the three"),
        ("SGLang", load("huggingface", "fp8", "nvfp4"), "no mix of formats"),
        ("SGLang", load("comfyui", "fp8"), None),
        ("TensorRT-LLM", load("huggingface", "int8_sq"), None),
        ("TensorRT-LLM", load("huggingface", "nvfp4_svdquant"), "does not read nvfp4_svdquant"),
        ("ComfyUI", load("huggingface", "fp8"), "`--as comfyui`"),
        ("ComfyUI", load("comfyui", "mxfp8"), None),
        ("diffusers", load("huggingface", "fp8"), "does not read fp8"),
        ("diffusers", load("huggingface", "nvfp4"), None),
        ("diffusers", load("diffusers", "w4a8_awq"), None),
        ("diffusers", load("native", "fp8"), "does not read this layout"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_consumer_takes_what_its_sources_read(name: str, given: Load, refusal: str | None) -> None:
    found = consumer(name).refusal(given)
    assert (refusal in found) if refusal and found else found is refusal


def test_every_layout_has_a_way_out_and_is_read_by_someone() -> None:
    assert {*LAYOUTS} <= {w.kind for w in WAYS.values()}
    assert {*LAYOUTS} <= {kind for c in CONSUMERS for kind in c.reads}


def test_a_card_has_code_or_a_reason_for_all_five(card: str) -> None:
    part = card.partition("## How to load it")[2]
    assert all(f"**{c.name}**" in part for c in CONSUMERS)
    assert len(CONSUMERS) == 5


# The run's own.


def test_a_run_that_made_weights_has_its_card_and_the_page_links_it(tmp_path: Path) -> None:
    b = bench()
    store = store_of(b, "fp8", tmp_path, made(b, "fp8"))
    steps = [
        step("load", "pipeline", PIPELINE),
        step("quantize", "checkpoint", CHECKPOINT, "load"),
        step("deploy", "deploy", DEPLOYED, "load", "quantize"),
        step("reference", "reference", "1" * 16, "load"),
        step("sample", "images", "2" * 16, "load", "quantize"),
        step("score", "metrics", "3" * 16, "sample", "reference"),
    ]
    run = ran(store, b, tmp_path / "run", steps=steps, psnr=35.0)
    assert run_card.write(Run(run), Path(b.source)) == run / run_page.CARD
    text = (run / run_page.CARD).read_text()
    assert ModelCard(text).data.eval_results[0].metric_value == 35.0
    linked = re.findall(r"!\[\w+\]\(([^)]*)\)", text)
    assert linked
    assert all((run / name).is_file() for name in linked)
    run_page.write(run)
    assert 'href="card.md"' in (run / "report.html").read_text()


def test_a_run_that_made_none_has_none(tmp_path: Path) -> None:
    b = bench()
    run = ran(store_of(b, "fp8", tmp_path), b, tmp_path / "run")
    assert run_card.write(Run(run), None) is None
    run_page.write(run)
    assert "card.md" not in (run / "report.html").read_text()


def test_pictures_are_few_small_and_in_pairs(tmp_path: Path) -> None:
    text = shipped(tmp_path, {"side": 600})
    linked = re.findall(r"!\[(\w+)\]\(([^)]*)\)", text)
    assert [kind for kind, _ in linked] == ["base", "this"] * 3
    for _, name in linked:
        with Image.open(tmp_path / "out" / name) as picture:
            assert (picture.format, max(picture.size)) == ("WEBP", 512)
