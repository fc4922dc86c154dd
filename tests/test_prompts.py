"""A prompt set is its prompts, whatever file they come from; what holds no prompts is refused."""

import json

import pytest

from diffopt.data.prompts import PromptSet, read


@pytest.fixture
def file(tmp_path):
    """`file(name, content)` writes a file and returns its path as text."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_a_text_file_has_a_prompt_a_line(file):
    assert read(file("p.txt", "a cat\na dog\n")).prompts == ("a cat", "a dog")


def test_blank_lines_and_spaces_around_prompts_do_not_count(file):
    assert read(file("p.txt", "\n  a cat \r\n\n\ta dog")).prompts == ("a cat", "a dog")


@pytest.mark.parametrize("rows", [["a cat", "a dog"], [{"prompt": "a cat", "id": 7}, {"prompt": "a dog"}]])
def test_a_json_file_has_texts_or_objects_with_a_prompt(file, rows):
    assert read(file("p.json", json.dumps(rows))).prompts == ("a cat", "a dog")


def test_the_same_prompts_are_the_same_set_in_any_kind_of_file(file):
    sets = [
        read(file("one.txt", "a cat\na dog\n")),
        read(file("two.txt", "a cat\r\n\r\na dog")),
        read(file("three.json", '["a cat", "a dog"]')),
    ]
    assert len({s.digest for s in sets}) == 1


def test_the_mark_that_windows_puts_in_front_is_no_part_of_the_first_prompt(file):
    assert read(file("p.txt", "a cat\n".encode("utf-8-sig"))).prompts == ("a cat",)


def test_the_order_of_prompts_counts(file):
    assert read(file("one.txt", "a cat\na dog")).digest != read(file("two.txt", "a dog\na cat")).digest


def test_text_outside_ascii_is_kept(file):
    assert read(file("p.txt", "кот 🐈")).prompts == ("кот 🐈",)


def test_a_part_is_the_same_set_as_a_file_of_that_part(file):
    whole = read(file("one.txt", "a\nb\nc\nd"))
    assert whole.part(1, 3).digest == read(file("two.txt", "b\nc")).digest


def test_a_set_that_was_read_is_not_read_again():
    prompts = PromptSet("nowhere", ("a cat",))
    assert read(prompts) is prompts


@pytest.mark.parametrize(("name", "least"), [("prompts_calib.txt", 128), ("prompts_eval.json", 64)])
def test_the_prompts_of_the_package_are_read_by_name(name, least):
    assert len(read(f"asset:emoji/{name}")) >= least


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.txt", "", "no prompt"),
        ("p.txt", "\n  \n", "no prompt"),
        ("p.json", "[]", "no prompt"),
        ("p.json", '["a cat",', "line 1"),
        ("p.json", '{"prompt": "a cat"}', "list of prompts"),
        ("p.json", '["a cat", 7]', "list of prompts"),
        ("p.json", '[{"text": "a cat"}]', "list of prompts"),
        ("p.txt", b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_what_holds_no_prompts_is_refused_with_the_reason(file, name, content, reason):
    with pytest.raises(ValueError, match=reason):
        read(file(name, content))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read(str(tmp_path / "p.txt"))


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="directory"):
        read(str(tmp_path))


@pytest.mark.parametrize("value", [None, 7, "", ["a cat"]])
def test_what_is_no_path_is_refused(value):
    with pytest.raises(ValueError, match="not the path"):
        read(value)


def test_the_home_of_a_user_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r".+"):
        read("~no-such-user-here/prompts.txt")


# data sets of the hub, from a local cache laid out as the hub client lays it out


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`hub(rows)` puts a data set org/set of these rows into a cache of the hub's, and takes the network away."""
    import huggingface_hub.constants
    import pyarrow as pa
    import pyarrow.parquet as pq

    def cached(rows, revision="main"):
        repo = tmp_path / "datasets--org--set"
        folder = repo / "snapshots" / ("c" * 40) / "data"
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
        (repo / "refs").mkdir()
        (repo / "refs" / revision).write_text("c" * 40)
        return "hub:org/set"

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return cached


def test_a_column_of_a_data_set_on_the_hub_is_a_prompt_set(hub):
    name = hub([{"Prompt": "a cat", "id": 1}, {"Prompt": " a dog ", "id": 2}, {"Prompt": "", "id": 3}])
    assert read(f"{name}:Prompt").prompts == ("a cat", "a dog")


def test_a_revision_of_a_data_set_can_be_named(hub):
    assert read(hub([{"text": "a cat"}], "v2") + "@v2:text").prompts == ("a cat",)


def test_a_column_that_is_not_there_is_refused(hub):
    with pytest.raises(ValueError, match="no texts in the column 'prompt'; there are Prompt"):
        read(hub([{"Prompt": "a cat"}]) + ":prompt")


def test_a_data_set_that_cannot_be_had_is_refused_in_one_line(hub):
    with pytest.raises(ValueError, match="cannot be read from the hub") as caught:
        read("hub:org/other:Prompt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["hub:set:Prompt", "hub:org/set", "hub:"])
def test_what_names_no_column_of_a_data_set_is_refused(value):
    with pytest.raises(ValueError, match="hub:ORG/NAME:COLUMN"):
        read(value)


# The package's own captions.

CAPTIONS = {"calibration": 128, "evaluation": 64, "videos": 64, "videos_evaluation": 8}


@pytest.mark.parametrize(("name", "count"), CAPTIONS.items())
def test_the_packages_captions_are_as_many_as_told_and_all_different(name: str, count: int) -> None:
    found = read(f"asset:prompts/{name}.txt").prompts
    assert len(found) == len(set(found)) == count


@pytest.mark.parametrize("name", CAPTIONS)
def test_the_packages_captions_are_not_cut_by_clip(name: str) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    ends = 2
    assert max(len(tokenizer.encode(p)) + ends for p in read(f"asset:prompts/{name}.txt").prompts) < 70


@pytest.mark.parametrize(("calibrated", "drawn"), [("calibration", "evaluation"), ("videos", "videos_evaluation")])
def test_what_is_drawn_is_not_what_was_calibrated_on(calibrated: str, drawn: str) -> None:
    assert not set(read(f"asset:prompts/{calibrated}.txt").prompts) & set(read(f"asset:prompts/{drawn}.txt").prompts)


# the sets that the field quotes


def test_the_embedded_set_is_the_packages_64_captions():
    assert read("embedded").digest == read("asset:prompts/evaluation.txt").digest
    assert len(read("embedded")) == 64


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("drawbench.csv", 'Prompts,Category\n"a cat, red",Colors\na dog,Colors\n'),
        ("PartiPrompts.tsv", "Prompt\tCategory\tChallenge\tNote\na cat, red\tAnimals\tBasic\t\na dog\tAnimals\tBasic\t\n"),
        ("meta_data.json", '{"9f": {"category": "x", "prompt": "a cat, red"}, "0a": {"category": "y", "prompt": "a dog"}}'),
        (
            "captions_val2014.json",
            json.dumps(
                {
                    "images": [{"id": 7}],
                    "annotations": [
                        {"image_id": 7, "id": 1, "caption": "a cat, red"},
                        {"image_id": 9, "id": 2, "caption": "a dog\n"},
                        {"image_id": 7, "id": 3, "caption": "a second caption of the same picture"},
                    ],
                }
            ),
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["", "coco:", "drawbench:"])
def test_a_sets_own_file_is_read_with_or_without_its_name(file, name, content, prefix):
    assert read(prefix + file(name, content)).prompts == ("a cat, red", "a dog")


def test_a_table_without_a_column_of_prompts_is_refused_with_what_it_has(file):
    with pytest.raises(ValueError, match=r"has no column of prompts among Category, Note; call one Prompt"):
        read(file("p.csv", "Category,Note\nx,y\n"))


def test_of_several_captions_of_a_picture_the_first_is_taken_from_the_hub(hub):
    assert read(hub([{"captions": ["a cat", "the cat"]}, {"captions": ["a dog"]}]) + ":captions").prompts == ("a cat", "a dog")


@pytest.mark.parametrize(("name", "copy"), [("mjhq", "meta_data.json by mjhq:FILE"), ("partiprompts", "PartiPrompts.tsv by p")])
def test_a_named_set_that_cannot_be_had_says_what_file_to_give(hub, name, copy):
    hub([{"x": "y"}])
    with pytest.raises(ValueError, match=rf"cannot be read from the hub .*, or give a copy of its {copy}"):
        read(name)
