"""Answers of other engines: read from the forms in which they are saved, and grounded by replay."""

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from analysis.conversation.asked import open_conversations
from analysis.settings import Settings
from core import RunStore, ground_answers, load_nlp, read_answers
from core.answer_files import ANSWER, IMAGE, PROMPT, GivenAnswer
from core.answers import replayable
from core.decoding import stop_ids
from core.errors import GroundingError
from core.images import load_image

ASKED = "What is there?"


@pytest.fixture
def folder(tmp_path, pictures):
    """A landscape and a portrait picture on disk, one of them named by a COCO id."""
    pictures["landscape"].save(tmp_path / "beach.png")
    pictures["portrait"].save(tmp_path / "000000000139.jpg")
    return tmp_path


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def address(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def completion(text: str = "A red cup.", reason: str = "stop", **more) -> dict:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {"object": "chat.completion", "model": "served-model", "choices": [choice], **more}


def asking(url: str, text: str = ASKED) -> dict:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"model": "served-model", "messages": [{"role": "user", "content": content}]}


def responded(text: str = "A red cup.", status: str = "completed", **more) -> dict:
    """As OpenAI's own client has it."""
    from openai.types.responses import Response

    said = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [said]}
    thought = {"type": "reasoning", "id": "r", "summary": []}
    about = {"id": "x", "object": "response", "created_at": 0, "model": "served-model", "status": status}
    about |= {"parallel_tool_calls": False, "tool_choice": "auto", "tools": []}
    return Response(**about | {"output": [thought, message]} | more).model_dump()


def asking_for_response(url: str, text: str = ASKED) -> dict:
    content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": text}]
    return {"model": "served-model", "input": [{"role": "user", "content": content}]}


PLAIN = {"image": "beach.png", "prompt": ASKED, "answer": "A red cup."}
FORMS = {
    "a list": [PLAIN],
    "lines": json.dumps(PLAIN) + "\n\n" + json.dumps({**PLAIN, "answer": "A cat."}) + "\n",
    "one object": PLAIN,
    "a mapping": {"beach.png": "A red cup."},
    "captions by id": [{"image_id": 139, "caption": "A red cup."}],
    "LLaVA's answers file": [{"question_id": 7, "image": "beach.png", "prompt": ASKED, "text": "A red cup."}],
    "request and response": [{"request": asking("beach.png"), "response": completion()}],
    "messages and choices": [asking("beach.png") | completion()],
    "vLLM": [{"request_id": "beach", "prompt": ASKED, "outputs": [{"text": "A red cup.", "finish_reason": "stop"}]}],
    "text completion": [{"image": "beach.png", "choices": [{"text": "A red cup.", "finish_reason": "stop"}]}],
    "Responses interface": [{"request": asking_for_response("beach.png"), "response": responded()}],
    "batch output": json.dumps({"custom_id": "beach", "response": {"status_code": 200, "body": completion()}}),
}


@pytest.mark.parametrize("form", FORMS)
def test_saved_forms_are_read(folder, form):
    path = write(folder / ("answers.jsonl" if isinstance(FORMS[form], str) else "answers.json"), FORMS[form])
    found = read_answers(path)
    assert found[0].answer == "A red cup." and found[0].complete
    assert found[0].prompt in (ASKED, None)
    assert load_image(found[0].image).size == ((84, 150) if "id" in form.split() else (140, 90))
    assert len({each.id for each in found}) == len(found) == (2 if form == "lines" else 1)


def test_a_batch_joins_its_requests_and_pictures_inside_them(folder, pictures):
    lines = [
        {"custom_id": f"q{i}", "method": "POST", "body": asking(address(pictures["small"]), f"{i}?")} for i in (0, 1)
    ]
    requests = write(folder / "batch.jsonl", "\n".join(map(json.dumps, lines)))
    bodies = [completion(f"Answer {i}.", "length" if i else "stop") for i in (0, 1)]
    results = [{"custom_id": f"q{i}", "error": None, "response": {"body": bodies[i]}} for i in (1, 0)]
    path = write(folder / "results.jsonl", "\n".join(map(json.dumps, results)))
    found = read_answers(path, requests=requests)
    assert [(each.id, each.prompt, each.answer, each.complete) for each in found] == [
        ("q1", "1?", "Answer 1.", False),
        ("q0", "0?", "Answer 0.", True),
    ]
    assert load_image(found[0].image).size == (61, 40)
    assert {each.writer for each in found} == {"served-model"}


def test_a_response_that_was_cut_is_not_complete(folder):
    asked = {"request": asking_for_response("beach.png"), "response": responded(status="incomplete")}
    (found,) = read_answers([asked], images=folder)
    assert (found.answer, found.complete, found.writer) == ("A red cup.", False, "served-model")


def test_objects_of_client_libraries(pictures):
    vllm = SimpleNamespace(request_id=3, prompt=ASKED, outputs=[SimpleNamespace(text="A cup.", finish_reason="length")])
    openai = SimpleNamespace(model_dump=lambda: completion("A cat.") | {"image": "b"})
    found = read_answers([vllm, openai], images={"3": pictures["small"], "b": pictures["square"]})
    assert [(each.id, each.answer, each.complete) for each in found] == [("3", "A cup.", False), ("b", "A cat.", True)]
    assert found[1].image is pictures["square"]


WRONG = {
    "no image in it": {"answer": "A cup."},
    "no answer in it (it has image, prompt)": {"image": "beach.png", "prompt": ASKED},
    "is not at": {"image": "gone.png", "answer": "A cup."},
    "download it, and give images=": {"image": "https://example.org/a.png", "answer": "A cup."},
    "it has 2 answers; keep the one to ground": {"image": "beach.png", "choices": [{"text": "a"}, {"text": "b"}]},
    "its request failed with status 429": {"custom_id": "beach", "response": {"status_code": 429, "body": {}}},
    "its request failed (too long)": {"image": "beach.png", "error": "too long"},
    "its answer is no text": {"image": "beach.png", "choices": [{"message": {"content": None}}]},
    "is int, not an object": 3,
    "shows 2 images": completion()
    | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "beach.png"}] * 2}]},
    "other messages than one of the user": completion()
    | {"messages": [{"role": "system", "content": "Be brief."}, *asking("beach.png")["messages"]]},
    "cannot be decoded": completion() | asking("data:image/png;base64,???"),
}


WRONG |= {
    "has the status 'failed'": {"image": "beach.png", "response": responded(status="failed")},
    "its answer is no text (a refusal": {
        "image": "beach.png",
        "response": {"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}]},
    },
    "it has 0 answers": {"image": "beach.png", "response": responded(output=[])},
    "Write a system prompt into": {
        "request": asking_for_response("beach.png"),
        "response": responded(),
        "body": {"instructions": "Be brief."},
    },
}


@pytest.mark.parametrize("told", WRONG)
def test_what_cannot_be_used_is_told_with_its_number(folder, told):
    path = write(folder / "answers.json", [PLAIN, WRONG[told]])
    with pytest.raises(GroundingError) as raised:
        read_answers(path)
    assert told in str(raised.value) and str(raised.value).startswith(f"answer 2 of '{path}'")


def test_files_that_are_none(folder):
    for name, text, told in (
        ("a.json", "{", "is not JSON"),
        ("a.jsonl", '{"image": "beach.png", "answer": "x"}\nbeach', "line 2 of .* is not JSON"),
        ("b.json", "[]", "holds no answers"),
        ("c.json", "3", "answers are int"),
    ):
        with pytest.raises(GroundingError, match=told):
            read_answers(write(folder / name, text))
    with pytest.raises(GroundingError, match="does not exist"):
        read_answers(folder / "none.json")
    with pytest.raises(GroundingError, match="'7' is there twice"):
        read_answers([PLAIN | {"id": 7}, PLAIN | {"id": 7}], images=folder)
    with pytest.raises(GroundingError, match=r"no image is called 'beach\.png' among the 1 given"):
        read_answers([PLAIN], images={"hill.png": 0})


def test_given_answers_are_grounded_as_a_replay_grounds_them(lmms, folder, tmp_path):
    lmm, answers = lmms["llava"], [PLAIN, {"image_id": 139, "caption": "A blue umbrella and a cup."}]
    store = RunStore(tmp_path / "run", {"what": "answers"})
    run = {"lmm": lmm, "segmenter": None, "nlp": load_nlp("embedded"), "store": store, "progress": False}
    with pytest.raises(GroundingError, match="'139' does not say what was asked"):
        ground_answers(write(folder / "answers.json", answers), **run)
    done = ground_answers(folder / "answers.json", prompt="Describe the image.", **run)
    assert done.grounded == ("beach", "139")
    found = store.read("139")
    expected = lmm.replay(folder / "000000000139.jpg", "Describe the image.", "A blue umbrella and a cup.")
    assert found.generation.text == "A blue umbrella and a cup."
    torch.testing.assert_close(found.generation.attention, expected.attention, atol=1e-4, rtol=0)
    assert found.generation.model["method"] == "replay"
    assert ground_answers(read_answers(folder / "answers.json"), prompt="Describe the image.", **run).skipped


def test_an_answer_that_was_cut_has_no_end(lmms):
    lmm = lmms["llava"]
    whole = lmm.replay(Image.new("RGB", (40, 30)), ASKED, replayable(GivenAnswer("1", "", "A red cup."), lmm))
    cut = lmm.replay(
        Image.new("RGB", (40, 30)), ASKED, replayable(GivenAnswer("1", "", "A red cup.", complete=False), lmm)
    )
    assert whole.text == cut.text == "A red cup."
    assert whole.token_ids.tolist() == [*cut.token_ids.tolist(), stop_ids(lmm.family)[0]]


def test_the_notebook_takes_a_file_of_answers(lmms, folder):
    path = write(folder / "answers.json", [PLAIN, {"image": "beach.png", "answer": "A cat.", "model": "another"}])
    settings = Settings(output_dir=str(folder / "out"), answers=str(path), n_images=0)
    asked = open_conversations(settings)
    assert dict(asked.prompts) == {"beach": ASKED, "beach_2": "Describe the image in detail."}
    assert asked.answers(lmms["llava"]) == {"beach": "A red cup.", "beach_2": "A cat."}
    assert "written by an unnamed model, another" in str(asked)
    assert "those of its open weights, not of what wrote the answers" in str(asked)
    assert settings.data_name() == "answers of answers.json"
    one = open_conversations(Settings(output_dir=str(folder / "out"), answers=str(path), n_images=1))
    assert list(one.pictures) == ["beach"]
    with pytest.raises(GroundingError, match="answer and answers are both given"):
        Settings(output_dir=str(folder / "out"), answers=str(path), answer="A cat.")
    with pytest.raises(GroundingError, match="not generated"):
        Settings(output_dir=str(folder / "out"), answers=str(path), generation={"do_sample": True})


def test_the_code_of_the_page_runs():
    page = Path(__file__).parent.parent / "docs" / "other_engines.md"
    text = page.read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(source, str(page), "exec"), {})
    assert "those of the open weights, not of the engine that wrote the answers" in text
    assert all(f"`{name}`" in text for name in (*ANSWER[1:], *IMAGE[1:5], PROMPT[1]))
