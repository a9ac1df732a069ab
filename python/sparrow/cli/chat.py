"""`sparrow chat`: a session at the terminal, or over lines of stdin."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sparrow.cli.decoding_arguments import Chat
from sparrow.cli.generate import sampling_options
from sparrow.cli.loading import bind, load_model, load_tokenizer, pick_device, quiet, read_drafter
from sparrow.cli.places import target_folder
from sparrow.cli.stream import LEGEND, Stream
from sparrow.decoding.session import Reply, Session
from sparrow.miniature.shipped import pair
from sparrow.progress import Progress, console
from sparrow.video import load_settings, read_image

HELP = """/video FILE   one more video, before the next question
/image FILE   one more image, for the next question
/undo         take back the last question and its answer
/memory       what the conversation holds
/save FILE    write the conversation, its videos and its rows
/load FILE    go on with one that was saved
/quit         or Ctrl-D"""


def run(arguments: Chat) -> int:
    """Returns 1 where stdin is no terminal and one of its lines failed."""
    quiet()
    if arguments.target is None:
        torch.set_num_threads(1)  # the matrices are too small to share
    conversation = Conversation(arguments, *_load(arguments))
    if arguments.load is not None:
        conversation.load(arguments.load)
    for video in arguments.video:
        conversation.video(video)
    for image in arguments.image:
        conversation.image(image)
    return conversation.run()


def _load(arguments: Chat) -> tuple[Any, Any, Any, Any]:
    """Model, drafter, settings and tokenizer."""
    shipped = arguments.target is None
    folder, drafter_folder = pair() if arguments.target is None else (target_folder(arguments.target), None)
    device = pick_device("cpu" if shipped and arguments.device is None else arguments.device)
    tokenizer = load_tokenizer(folder, arguments.trust_remote_code)
    drafter = read_drafter(str(drafter_folder) if shipped else arguments.drafter, folder)
    settings = load_settings(folder)
    dtype = "float32" if shipped and arguments.dtype == "auto" else arguments.dtype
    model = load_model(folder, dtype, device, arguments.trust_remote_code)
    return model, bind(drafter, model), settings, tokenizer


class Stopwatch:
    """A streamer that passes everything on and knows when the first token came."""

    def __init__(self, stream: Stream):
        self.stream, self.begun, self.first, self.puts = stream, time.perf_counter(), 0.0, 0

    def put(self, value: Tensor) -> None:
        self.puts += 1
        if self.puts == 2:  # the first is the prompt
            self.first = time.perf_counter() - self.begun
        self.stream.put(value)

    def end(self) -> None:
        self.stream.end()


class Conversation:
    """Reads lines and obeys them: questions, and the commands of HELP.

    Args:
        arguments: of the command.
        parts: what Session takes: model, drafter, settings, tokenizer.
    """

    def __init__(self, arguments: Chat, *parts: Any):
        self.arguments, self.parts = arguments, parts
        self.options = {**sampling_options(arguments), "seed": arguments.seed, "tree": arguments.tree}
        self.options["prefill_chunk_size"] = arguments.prefill_chunk
        self.session = Session(*parts, system=arguments.system, **self.options)
        self.images: list[Any] = []  # of the next question
        self.commands: dict[str, Callable[[str], None]] = {
            "video": self.video, "image": self.image, "undo": self.undo, "memory": self.memory, "save": self.save,
            "load": self.load, "help": lambda _: print(HELP, file=sys.stderr),
        }  # fmt: skip

    def run(self) -> int:
        """All lines up to /quit or the end. Returns the exit code."""
        terminal, failed = sys.stdin.isatty(), False
        if terminal:
            print("Ask about the video; /help lists the commands.", file=sys.stderr)
        for line in _lines(terminal):
            if line in ("/quit", "/exit"):
                break
            try:
                self.obey(line)
            except (ValueError, OSError, RuntimeError) as error:
                failed = True
                print(f"sparrow: {' '.join(str(error).split())}", file=sys.stderr)
            except KeyboardInterrupt:
                print("\nsparrow: the question is taken back", file=sys.stderr)
        return int(failed and not terminal)

    def obey(self, line: str) -> None:
        """One line. Raises ValueError, OSError or RuntimeError where it fails; the conversation is then as before."""
        if not line.startswith("/"):
            self.ask(line)
            return
        name, _, rest = line[1:].partition(" ")
        if name not in self.commands:
            raise ValueError(f"no command /{name}; there are /{', /'.join([*self.commands, 'quit'])}")
        self.commands[name](rest.strip())

    def ask(self, text: str) -> None:
        """Streams the answer, then tells how it came about."""
        model, _, _, tokenizer = self.parts
        stream = Stream(tokenizer, model, 0, self.arguments.max_new_tokens, rounds=self.parts[1] is not None)
        stream.prefill.update(text="running the question")
        watch = Stopwatch(stream)
        with contextlib.closing(stream), _interruptible() as stopped:
            stop = [lambda *_: bool(stopped)]
            reply = self.session.send(
                text, images=self.images, streamer=watch, on_round=stream.on_round, stopping_criteria=stop
            )
        self.images.clear()
        if stream.colour and len(self.session.turns) == 1:
            print(f"[{LEGEND}]")
        _tell(reply, watch.first, bool(stopped))

    def video(self, file: str) -> None:
        """Reads and runs a video."""
        if not file:
            raise ValueError("/video needs a file")
        with Progress("reading and running the video") as progress:
            tokens = self.session.extend(
                file, num_frames=self.arguments.num_frames, fps=self.arguments.fps,
                progress=progress.update,
            )  # fmt: skip
        print(f"[{file}: {tokens} tokens]", file=sys.stderr)

    def image(self, file: str) -> None:
        """Reads an image, which goes with the next question."""
        if not file:
            raise ValueError("/image needs a file")
        self.images.append(read_image(file, "/image"))
        height, width = self.images[-1].shape[:2]
        print(f"[{file}: {width} x {height} pixels]", file=sys.stderr)

    def undo(self, _: str) -> None:
        print(f"[taken back: {self.session.undo().text}]", file=sys.stderr)

    def memory(self, _: str) -> None:
        for name, size in self.session.memory.items():
            print(f"{name:16} {size:,} bytes", file=sys.stderr)

    def save(self, file: str) -> None:
        if not file:
            raise ValueError("/save needs a file")
        self.session.save(file)
        print(f"[saved: {file}]", file=sys.stderr)

    def load(self, file: str) -> None:
        if not file:
            raise ValueError("/load needs a file")
        self.session = Session.load(file, *self.parts, **self.options)
        for turn in self.session.turns:
            print(f"> {turn.text}\n{turn.answer}", file=sys.stderr)


def _lines(terminal: bool) -> Iterator[str]:
    """What is typed or piped, without empty lines."""
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() then edits lines and remembers them
    while True:
        try:
            line = input("> ") if terminal else next(sys.stdin).strip("\n")
        except (EOFError, StopIteration):
            return
        if line.strip():
            yield line.strip()


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Yields a list that the first Ctrl-C fills; a second one raises KeyboardInterrupt."""
    pressed: list[int] = []

    def press(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _tell(reply: Reply, first: float, stopped: bool) -> None:
    """One line on stderr."""
    s = reply.stats
    speed = f", tau {s.tau:.2f}, {s.decode_tokens_per_second:.0f} tokens/s" if s.rounds else ""
    ran = s.prompt_tokens - s.reused_tokens
    console.print(
        f"[{s.new_tokens} tokens{speed}; first after {first:.2f} s: {ran} of {s.prompt_tokens} prompt tokens were run"
        f"{'; interrupted' if stopped else ''}]",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
