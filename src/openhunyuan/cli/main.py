"""The command ``openhunyuan``: finds the verb, runs it, and turns errors into one sentence and an exit code.

Exit codes: 0 done, 1 this machine could not do it (memory, disk), 2 wrong input, 130 interrupted. A verb's module is
imported when the verb is used, and torch only when there is work for it, so help and refusals are instant.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import start_logging
from openhunyuan.base.record import unknown

PROG = "openhunyuan"

# verb -> (module with `run(args) -> exit code`, what it does)
VERBS: dict[str, tuple[str, str]] = {
    "generate": ("openhunyuan.cli.generate", "Make a video (or an image) from a prompt."),
    "replay": ("openhunyuan.cli.replay", "Make a generated file's frames again, from the request inside it."),
    "rewrite": ("openhunyuan.cli.rewrite", "Have a language model rewrite a prompt, as `generate --rewrite` would."),
    "evaluate": ("openhunyuan.cli.evaluate", "Measure a model: alignment with prompts, or reconstruction by its VAE."),
    "curate": (
        "openhunyuan.cli.curate",
        "Turn raw footage into filtered clips; report on them, have people judge them.",
    ),
    "caption": ("openhunyuan.cli.caption", "Caption curated clips: what was measured, or a model behind an address."),
    "encode": ("openhunyuan.cli.encode", "Encode captioned clips into the latents that training reads."),
    "train": ("openhunyuan.cli.train", "Run a named training recipe; it resumes where its directory stands."),
    "convert": ("openhunyuan.cli.convert", "Convert weights between official, diffusers, ComfyUI and our formats."),
    "download": ("openhunyuan.cli.download", "Fetch a released model from the hub, after its licence."),
    "info": ("openhunyuan.cli.info", "Say what a model is: parts, sizes, defaults, licence."),
    "doctor": ("openhunyuan.cli.doctor", "Say what this machine can do, and check the installation."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    start_logging()
    try:
        return _dispatch(args)
    except UserError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("Interrupted.", 130)
    except BrokenPipeError:
        # The reader of our stdout (a pager, head) left; there is no one to tell.
        sys.stdout = None
        return 0
    except (OSError, MemoryError, RuntimeError) as error:
        text = _machine_error(error, args[0] if args else "")
        if text is None:
            raise
        return _fail(text, 1)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] in ("-V", "--version"):
        from openhunyuan.infer.output import package_version

        print(f"{PROG} {package_version()}")
        return 0
    if args[0] not in VERBS:
        kind = "option" if args[0].startswith("-") else "command"
        raise UserError(unknown(kind, args[0], VERBS))
    module = importlib.import_module(VERBS[args[0]][0])
    return module.run(args[1:])


def usage() -> str:
    """The list of verbs."""
    width = max(len(verb) for verb in VERBS)
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            f"usage: {PROG} COMMAND [OPTIONS]",
            "",
            "HunyuanVideo in one package: from a prompt to an mp4, on this machine.",
            "",
            "commands:",
            *lines,
            "",
            f'Try: {PROG} generate --prompt "a large red circle moves right on a black background"',
            f"Options of a command: {PROG} COMMAND --help",
        ]
    )


def _fail(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code


def _machine_error(error: BaseException, verb: str) -> str | None:
    """One sentence when the machine, not the program, is at fault; None for what deserves a traceback."""
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "not enough memory" in text:
        if verb == "train":
            return (
                "The memory does not suffice; the stages find micro-batches that fit with --memory and keep less with "
                "--recompute. Started again, the run goes on from its last checkpoint."
            )
        return "The memory does not suffice; use a smaller height, width or num_frames, or a device with more."
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}."
    return None


if __name__ == "__main__":
    sys.exit(main())
