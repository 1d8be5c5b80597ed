"""Answers that something else wrote (a server, an engine, another system), read from what it leaves behind."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from core.errors import GroundingError

IMAGE = ("image", "image_path", "image_file", "file_name", "image_id", "custom_id", "request_id")
PROMPT = ("prompt", "question")
ANSWER = ("answer", "caption", "response", "output", "text")
ID = ("id", "custom_id", "question_id", "request_id")
CUT = "length"  # the finish_reason of an answer that a limit of tokens ended
KNOWN = (
    'give {"image", "prompt", "answer"} objects (a JSON list, or one a line), {"image": "answer"} in one object, saved '
    "chat completions with their requests, or vLLM's outputs"
)


@dataclass(frozen=True)
class GivenAnswer:
    """One answer.

    Attributes:
        id: of its record.
        image: what `core.load_image` opens: a path, or the bytes of a file.
        answer: the text.
        prompt: what was asked; None where the file does not say.
        complete: False where a limit of tokens cut the answer, which then has no end-of-sequence token.
        writer: the model that wrote it, where the file says so.
    """

    id: str
    image: Any
    answer: str
    prompt: str | None = None
    complete: bool = True
    writer: str = ""


def read_answers(
    source: Any, *, images: str | Path | Mapping[str, Any] | None = None, requests: str | Path | None = None
) -> tuple[GivenAnswer, ...]:
    """Read answers, in the order of the file.

    Args:
        source: a .json or .jsonl file, or what such a file holds: a list of objects or a mapping. An object is one of

            - `{"image", "prompt", "answer"}`; also `image_path`, `image_file`, `file_name`, `image_id`; `question`;
              `caption`, `response`, `output`, `text`. A record `id` may be given.
            - a chat or text completion of an OpenAI-compatible endpoint (`choices`), alone or as `response`, beside
              its request (`messages`, or a `request` or `body` that has them) or an `image`; also a line of a batch's
              output file (`custom_id`, `response.body`).
            - a response of OpenAI's Responses interface (`output`), in the same places, its request having `input`.
            - an output of vLLM (`request_id`, `prompt`, `outputs`), as a mapping or as the object itself.

            One mapping of texts is read as image to answer.
        images: the folder of relative paths and of bare ids (by default the file's), or images by name or id.
        requests: the input file of a batch, whose lines have the same `custom_id`s.

    Raises:
        GroundingError: something that is none of these, an entry without image or answer, a failed request, an image
            that is not at hand, several answers in one response, or a conversation of several turns.

    >>> from core import read_answers
    >>> answers = read_answers([{"image": "embedded", "prompt": "What is there?", "answer": "A blue moon."}])
    >>> answers[0].id, answers[0].prompt
    ('embedded', 'What is there?')
    """
    folder = Path(source).parent if isinstance(source, str | Path) else Path()
    entries = _load(source)
    asked = {} if requests is None else _requests(requests)
    images = folder if images is None else images
    found: list[GivenAnswer] = []
    taken: set[str] = set()
    for number, raw in enumerate(entries, start=1):
        try:
            entry = _entry(raw)
            request = asked.get(str(entry.get("custom_id")), {})
            answer = _given(entry | ({"request": request} if request else {}), images, taken)
        except GroundingError as error:
            raise GroundingError(f"answer {number} of {_name(source)}: {error}") from error
        taken.add(answer.id)
        found.append(answer)
    if not found:
        raise GroundingError(f"{_name(source)} holds no answers; {KNOWN}")
    return tuple(found)


def _name(source: Any) -> str:
    return repr(str(source)) if isinstance(source, str | Path) else "those given"


def _load(source: Any) -> Iterable[Any]:
    if not isinstance(source, str | Path):
        return _listed(source)
    path = Path(source)
    if not path.is_file():
        raise GroundingError(f"the file of answers {str(path)!r} does not exist; give a .json or .jsonl file")
    text = path.read_text(encoding="utf-8-sig")
    try:
        return _listed(json.loads(text))
    except json.JSONDecodeError as error:
        if path.suffix.lower() == ".json":
            raise GroundingError(f"{str(path)!r} is not JSON ({error})") from error
    return list(_lines(path, text))


def _lines(path: Path, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise GroundingError(f"line {number} of {str(path)!r} is not JSON ({error})") from error


def _listed(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        if value and all(isinstance(text, str) for text in value.values()) and not set(value) & {*ANSWER, *IMAGE}:
            return [{"image": image, "answer": text} for image, text in value.items()]
        return [value]
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return value
    raise GroundingError(f"answers are {type(value).__name__}; {KNOWN}")


def _requests(path: str | Path) -> dict[str, Mapping[str, Any]]:
    found = {}
    for entry in map(_entry, _load(path)):
        if "custom_id" not in entry:
            raise GroundingError(f"a line of {str(path)!r} has no custom_id; give the input file of a batch")
        found[str(entry["custom_id"])] = entry.get("body", entry)
    return found


def _entry(raw: Any) -> Mapping[str, Any]:
    """A mapping from a mapping, or from an object of a client library."""
    if isinstance(raw, Mapping):
        return dict(raw)
    if hasattr(raw, "model_dump"):  # the OpenAI client's
        return raw.model_dump()
    if hasattr(raw, "outputs") and hasattr(raw, "request_id"):  # vLLM's
        outputs = [{"text": each.text, "finish_reason": each.finish_reason} for each in raw.outputs]
        return {"request_id": raw.request_id, "prompt": raw.prompt, "outputs": outputs}
    raise GroundingError(f"it is {type(raw).__name__}, not an object; {KNOWN}")


def _given(entry: Mapping[str, Any], images: Any, taken: set[str]) -> GivenAnswer:
    answer, complete, writer = _answer(entry)
    shown, asked = _asked(entry)
    prompt = next((entry[key] for key in PROMPT if isinstance(entry.get(key), str)), asked)
    named = next((entry[key] for key in IMAGE if entry.get(key) is not None), None)
    image = _open(shown if shown is not None and not _is_named(entry) else named, images)
    wanted = next((str(entry[key]) for key in ID if entry.get(key) is not None), None)
    if wanted is not None and wanted in taken:
        raise GroundingError(f"the id {wanted!r} is there twice; records are kept by id, so each needs its own")
    return GivenAnswer(wanted or _new_id(named or shown, taken), image, answer, prompt, complete, writer)


def _is_named(entry: Mapping[str, Any]) -> bool:
    return any(entry.get(key) is not None for key in IMAGE if key not in ID)


def _answer(entry: Mapping[str, Any]) -> tuple[str, bool, str]:
    """(text, complete, writer) of an entry, from the outside inwards."""
    if entry.get("error"):
        raise GroundingError(f"its request failed ({entry['error']}); ask again, or leave it out")
    for key in ("response", "body", "choices", "outputs"):
        if isinstance(entry.get(key), Mapping) and (key != "body" or "messages" not in entry[key]):
            inner = entry[key]
            if inner.get("status_code", 200) != 200:
                raise GroundingError(
                    f"its request failed with status {inner['status_code']}; ask again, or leave it out"
                )
            return _answer(inner)
        if isinstance(entry.get(key), list):
            text, complete = _chosen(entry[key])
            return text, complete, str(entry.get("model") or "")
    if isinstance(entry.get("output"), list):
        return *_responded(entry), str(entry.get("model") or "")
    text = next((entry[key] for key in ANSWER if isinstance(entry.get(key), str)), None)
    if text is None:
        raise GroundingError(f"no answer in it (it has {', '.join(map(str, entry)) or 'nothing'}); {KNOWN}")
    return text, entry.get("finish_reason") != CUT, str(entry.get("model") or "")


def _chosen(choices: list[Any]) -> tuple[str, bool]:
    if len(choices) != 1:
        raise GroundingError(f"it has {len(choices)} answers; keep the one to ground")
    choice = choices[0]
    text = choice.get("message", {}).get("content") if "message" in choice else choice.get("text")
    if isinstance(text, list):
        text = "".join(part.get("text", "") for part in text)
    if not isinstance(text, str):
        raise GroundingError("its answer is no text (a refusal or a call of a tool); leave it out")
    return text, choice.get("finish_reason") != CUT


def _responded(response: Mapping[str, Any]) -> tuple[str, bool]:
    """(text, complete) of a response of OpenAI's Responses interface: its one message, whatever else it has put out."""
    status = response.get("status", "completed")
    if status not in ("completed", "incomplete"):
        raise GroundingError(f"its request has the status {status!r}; ask again, or leave it out")
    said = [each for each in response["output"] if each.get("type") == "message"]
    if len(said) != 1:
        raise GroundingError(f"it has {len(said)} answers; keep the one to ground")
    parts = said[0].get("content", [])
    if not parts or any(part.get("type") != "output_text" for part in parts):
        raise GroundingError("its answer is no text (a refusal or a call of a tool); leave it out")
    return "".join(part["text"] for part in parts), status == "completed"


def _asked(entry: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(image, text) of the request beside an answer; (None, None) without one."""
    holders = [entry, entry.get("request"), entry.get("body")]
    holders += [holder["body"] for holder in holders[1:2] if isinstance(holder, Mapping) and "body" in holder]
    mappings = [holder for holder in holders if isinstance(holder, Mapping)]
    messages = next((h["messages"] for h in mappings if "messages" in h), None)
    messages = next((h["input"] for h in mappings if isinstance(h.get("input"), list)), messages)
    if messages is None:
        return None, None
    system = any(holder.get("instructions") for holder in mappings)
    if system or [message.get("role") for message in messages] != ["user"]:
        raise GroundingError(
            "its request has other messages than one of the user; a replay asks one question about one image. Write "
            "a system prompt into the template of the open weights (load_lmm(template=...)), and give the question as "
            "'prompt' in the place of 'messages'"
        )
    content = messages[0].get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [part["text"] for part in parts if part.get("type") in ("text", "input_text")]
    shown = [part["image_url"] for part in parts if part.get("type") in ("image_url", "input_image")]
    if len(shown) > 1:
        raise GroundingError(f"its request shows {len(shown)} images; a replay shows one")
    urls = [url["url"] if isinstance(url, Mapping) else url for url in shown]
    return (urls[0] if urls else None), "\n".join(texts) or None


def _open(named: Any, images: Any) -> Any:
    """What `load_image` opens, from a name, an id or an address."""
    if named is None:
        raise GroundingError(f"no image in it; {KNOWN}")
    if isinstance(images, Mapping):
        key = named if named in images else str(named)
        if key not in images:
            raise GroundingError(f"no image is called {named!r} among the {len(images)} given")
        return images[key]
    name = str(named)
    if name == "embedded":
        return name
    if name.startswith("data:"):
        return _decoded(name)
    if urlsplit(name).scheme in ("http", "https", "s3", "gs"):
        raise GroundingError(f"its image is at {name!r}; download it, and give images= by that name, or a folder")
    path = Path(unquote(urlsplit(name).path)) if name.startswith("file://") else Path(images, name)
    if path.is_file():
        return path
    stems = {name, name.zfill(12)}  # COCO's ids are file names of twelve digits
    near = sorted(each for each in path.parent.glob("*.*") if each.stem in stems) if path.parent.is_dir() else []
    if len(near) != 1:
        raise GroundingError(f"its image {name!r} is not at {str(path)!r}; give images=, the folder of the pictures")
    return near[0]


def _decoded(address: str) -> bytes:
    """The bytes of a data: address in base64."""
    header, _, data = address.partition(",")
    try:
        if not header.endswith(";base64"):
            raise ValueError("it is not base64")
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error) as error:
        raise GroundingError(f"its image, {header!r}, cannot be decoded ({error})") from error


def _new_id(named: Any, taken: set[str]) -> str:
    """A record id from an image's name; numbered where the image has several answers."""
    name = str(named)
    stem = "answer" if name.startswith("data:") else Path(urlsplit(name).path).stem or "answer"
    number = 1
    while (id := stem if number == 1 else f"{stem}_{number}") in taken:
        number += 1
    return id
