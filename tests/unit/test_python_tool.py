"""The python tool: a notebook per rollout, as the model sees it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from axpo.errors import ConfigError, ToolError
from axpo.images import ContentImageStore
from axpo.protocols import ClosableTool, StatefulTool
from axpo.tools.python_exec import NO_OUTPUT, PythonTool
from axpo.tools.sandbox.pictures import fitting_size
from axpo.types import FailureKind, ToolCall
from sandboxed import PythonRollout


@pytest.fixture(scope="module")
def tool() -> Iterator[PythonTool]:
    tool = PythonTool(max_timeout_s=20, max_output_chars=2000, max_images=3, max_image_px=200_000)
    yield tool
    tool.close()


@pytest.fixture
def rollout(tool: PythonTool) -> Iterator[PythonRollout]:
    rollout = PythonRollout(tool)
    yield rollout
    rollout.close()


def test_it_fits_the_seams_of_tools(tool: PythonTool) -> None:
    assert isinstance(tool, StatefulTool)
    assert isinstance(tool, ClosableTool)
    assert tool.spec.name == "python"
    assert tool.spec.parameters["required"] == ["code"]
    assert tool.spec.parameters["properties"]["timeout"]["default"] == 12


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1 + 1", "2"),
        ("'a\\nb'", "'a\\nb'"),
        ("print('x'); 'y'", "x\n'y'"),
        ("x = 3", NO_OUTPUT),
        ("None", NO_OUTPUT),
        ("5;", NO_OUTPUT),
        ("", NO_OUTPUT),
        ("import sys\nprint('a', file=sys.stderr)\nprint('b')", "a\nb"),
        ("import sys; sys.stdout.buffer.write(b'raw'); None", "raw"),
        ("for i in range(3):\n    print(i, end=' ')", "0 1 2 "),
        ("import sys; sys.exit()", NO_OUTPUT),
        ("display(1, 'a')", "1\n'a'"),
        ("40 + 2\n# why", "42"),
        ("input()", "EOFError"),
    ],
)
def test_output_and_last_expression(rollout: PythonRollout, code: str, expected: str) -> None:
    answer = rollout.outcome(code)
    assert answer == expected or answer.splitlines()[-1].startswith(expected)


def test_state_lasts_for_a_rollout_and_no_longer(tool: PythonTool, rollout: PythonRollout) -> None:
    rollout.call("import math\ndef area(r): return math.pi * r * r")
    assert rollout.text("round(area(2), 3)") == "12.566"
    assert rollout.text("_ + 1") == "13.566"
    other = PythonRollout(tool)
    assert other.failure("area")[1].endswith("NameError: name 'area' is not defined")
    other.close()
    other.close()  # a rollout that has nothing left


def test_classes_of_cells_can_be_pickled_and_annotated(rollout: PythonRollout) -> None:
    rollout.call("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'")
    assert rollout.text("import pickle, typing; pickle.loads(pickle.dumps(P(3))), typing.get_type_hints(P)['x']") == (
        "(P(x=3), <class 'int'>)"
    )


def without_marks(message: str) -> list[str]:
    """Its lines; what is underlined differs between versions of Python."""
    return [line for line in message.splitlines() if set(line.strip()) - set("^~")]


def test_a_traceback_shows_the_cells_and_their_source_lines_only(rollout: PythonRollout) -> None:
    rollout.call("def half(values):\n    return len(values) / zero\nzero = 0")
    kind, message = rollout.failure("import json\nprint('before')\njson.dumps(half)\n")
    assert kind is FailureKind.EXECUTION_ERROR
    assert without_marks(message) == [
        "before",
        "Traceback (most recent call last):",
        '  File "<cell 2>", line 3, in <module>',
        "    json.dumps(half)",
        "TypeError: Object of type function is not JSON serializable",
    ]
    _, message = rollout.failure("half([1])")
    assert without_marks(message) == [
        "Traceback (most recent call last):",
        '  File "<cell 3>", line 1, in <module>',
        "    half([1])",
        '  File "<cell 1>", line 2, in half',
        "    return len(values) / zero",
        "ZeroDivisionError: division by zero",
    ]
    _, message = rollout.failure("try:\n    half([1])\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e")
    assert "direct cause" in message
    assert "axpo" not in message


def test_syntax_errors_show_the_place(rollout: PythonRollout) -> None:
    kind, message = rollout.failure("x = 1\ny = (2")
    assert kind is FailureKind.EXECUTION_ERROR
    assert message == "  File \"<cell 1>\", line 2\n    y = (2\n        ^\nSyntaxError: '(' was never closed"
    assert "null bytes" in rollout.failure("x = 1\0")[1]
    assert "UnicodeEncodeError" in rollout.failure("x = '\ud800'")[1]


@pytest.mark.parametrize("code", ["def f(n): return f(n + 1)\nf(0)", "f = lambda n: g(n)\ng = lambda n: f(n)\nf(0)"])
def test_a_deep_traceback_is_shortened(rollout: PythonRollout, code: str) -> None:
    _, message = rollout.failure(code)
    assert "RecursionError: maximum recursion depth exceeded" in message
    assert len(message.splitlines()) <= 61


def test_long_output_keeps_both_ends_and_says_what_is_cut(rollout: PythonRollout) -> None:
    answer = rollout.text("print('start' + 'x' * 10_000_000 + 'end')")
    assert answer.startswith("startxxx")
    assert answer.endswith("xxxend")
    assert len(answer) <= 2100
    assert "x\n[... 9998009 bytes left out ...]\nx" in answer
    many = rollout.text("for i in range(100_000): print(i)")
    assert many.startswith("0\n1\n2\n")
    assert many.endswith("99998\n99999")
    _kind, message = rollout.failure("print('x' * 100_000)\n1/0")
    assert message.endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("code", "is_cut"),
    [
        ("print('x' * 1999)", False),
        ("print('x' * 3000)", True),
        ("print('x' * 3000)\n1 / 0", True),
        ("print('\\0' * 600)", True),  # within the limit until it is spelled out
        ("from PIL import Image\nfor i in range(3): display(Image.new('L', (9, 9)))", False),
        ("from PIL import Image\nfor i in range(4): display(Image.new('L', (9, 9)))", True),
    ],
)
def test_what_is_left_out_is_told(rollout: PythonRollout, code: str, is_cut: bool) -> None:
    rollout.outcome(code)
    assert rollout.context.is_cut is is_cut


def test_text_that_no_tokenizer_takes_is_spelled_out(rollout: PythonRollout) -> None:
    assert rollout.text("print('a\\0b\\x1b[31m\\ud800 é 漢 \\r\\n.\\r.')") == "a\\x00b\\x1b[31m\\ud800 é 漢 \n.\n."


def test_scientific_libraries_are_there(rollout: PythonRollout) -> None:
    assert rollout.text("import sympy as s; x = s.symbols('x'); s.integrate(s.sin(x), (x, 0, s.pi))") == "2"
    assert rollout.text("import pandas as pd; int(pd.DataFrame({'a': [1, 2]}).a.sum())") == "3"
    assert rollout.text("from scipy.optimize import brentq; round(brentq(lambda x: x**2 - 2, 0, 2), 6)") == "1.414214"
    assert rollout.text("import numpy as np; float(np.linalg.det(np.eye(3)))") == "1.0"
    assert rollout.text("len(str(2 ** 40_000))") == "12042"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "import sqlite3\nconnection, other = sqlite3.connect('a.db'), sqlite3.connect('a.db')\n"
            "connection.execute('pragma journal_mode=wal')\n"
            "connection.execute('create table t (n)'); connection.execute('insert into t values (7)')\n"
            "before = other.execute('select * from t').fetchall()\nconnection.commit()\n"
            "before, other.execute('select * from t').fetchall()",
            "([], [(7,)])",
        ),
        ("import shutil; open('a', 'w').write('x' * 9); shutil.copyfile('a', 'b'); open('b').read()", "'xxxxxxxxx'"),
        (
            "import numpy as np\nshared = np.memmap('m', np.uint8, 'w+', shape=9); shared[:] = 1; shared.flush()\n"
            "int(np.memmap('m', np.uint8, 'r').sum())",
            "9",
        ),
        (
            "import os, sys, tempfile\nfile = tempfile.TemporaryFile(); file.write(b'x'); os.fsync(file.fileno())\n"
            "os.set_inheritable(file.fileno(), True)\n"
            "os.get_inheritable(file.fileno()), os.get_blocking(os.dup(file.fileno())), os.isatty(0)",
            "(True, True, False)",
        ),
        ("from concurrent.futures import ThreadPoolExecutor as Pool; list(Pool(2).map(abs, [-1, 2]))", "[1, 2]"),
    ],
    ids=["SQLite", "copied file", "mapped file", "temporary file", "threads"],
)
def test_ordinary_code_works_without_the_calls_that_are_refused(
    rollout: PythonRollout, code: str, expected: str
) -> None:
    assert rollout.text(code) == expected


def test_random_numbers_repeat_in_a_fresh_interpreter(tool: PythonTool) -> None:
    code = "import random, numpy as np; random.random(), float(np.random.rand()), list({'a', 'b', 'c'})"
    answers = set()
    for _ in range(2):
        rollout = PythonRollout(tool)
        answers.add(rollout.text(code))
        rollout.close()
    assert len(answers) == 1


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_figures_become_pictures(rollout: PythonRollout) -> None:
    content = rollout.call(
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()\nplt.figure(); plt.plot([2, 1])"
    )
    assert content[0].text is not None
    assert content[0].text.startswith("[<matplotlib.lines.Line2D")
    assert [block.text for block in content[1::2]] == ["img_idx 0:", "img_idx 1:"]
    pictures = [block.image for block in content[2::2] if block.image is not None]
    assert len(pictures) == 2
    assert pictures[0] != pictures[1]
    assert pictures[0].width_px * pictures[0].height_px <= 200_000
    pixels = np.asarray(rollout.context.store.load(pictures[0]))
    assert (pixels == 255).mean() > 0.8
    assert pixels.min() < 150  # something is drawn on the white page
    assert rollout.text("plt.get_fignums()") == "[]"


def test_figures_of_a_cell_that_failed_are_gone(rollout: PythonRollout) -> None:
    rollout.failure("import matplotlib.pyplot as plt\nplt.plot([1, 2])\n1 / 0")
    assert rollout.text("plt.get_fignums()") == "[]"


@pytest.mark.parametrize("shown", ["image", "display(image)", "image.show()"])
def test_an_image_becomes_a_picture(rollout: PythonRollout, shown: str) -> None:
    content = rollout.call(f"from PIL import Image\nimage = Image.new('RGB', (40, 30), (1, 2, 3))\n{shown}")
    assert content[0].text == "img_idx 0:"
    assert content[1].image is not None
    assert (content[1].image.width_px, content[1].image.height_px) == (40, 30)
    assert rollout.context.store.load(content[1].image).getpixel((5, 5)) == (1, 2, 3)


def test_pictures_are_bounded_in_number_and_size(rollout: PythonRollout) -> None:
    content = rollout.call("from PIL import Image\nfor i in range(9): display(Image.new('L', (3000, 2000), i))")
    assert content[0].text == "[6 more images left out]"
    sizes = [(block.image.width_px, block.image.height_px) for block in content if block.image is not None]
    assert sizes == [(547, 365)] * 3
    assert "too extreme" in rollout.failure("Image.new('RGB', (3000, 2))")[1]


def test_a_thin_picture_that_is_scaled_down_is_not_thinner(rollout: PythonRollout) -> None:
    content = rollout.call("from PIL import Image\nImage.new('L', (16384, 82))")  # rounded down: 6321x31, above 200:1
    assert content[1].image is not None
    assert (content[1].image.width_px, content[1].image.height_px) == (6200, 31)


def test_fitting_sizes_fit_whatever_the_rounding() -> None:
    for short_px in (1, 2, 3, 31, 82, 999):
        for ratio in (1.0, 1.3, 199.0, 199.9, 200.0):
            for max_px in (1, 2, 199, 200, 1000, 1280 * 32 * 32):
                long_px = int(short_px * ratio)
                if short_px * long_px > max_px:
                    width_px, height_px = fitting_size(long_px, short_px, max_px)
                    assert 0 < height_px <= width_px <= 200 * height_px
                    assert width_px * height_px <= max_px
                    assert fitting_size(short_px, long_px, max_px) == (height_px, width_px)


def test_pictures_of_the_dialogue_are_in_step_in_both_directions(tool: PythonTool) -> None:
    store = ContentImageStore()
    rollout = PythonRollout(tool, store)
    rollout.context.images.append(store.add_image(Image.new("RGB", (64, 48), (9, 8, 7))))
    assert rollout.text("len(_pil_images), _pil_images[0].size, _pil_images[0].getpixel((1, 1)), _images") == (
        "(1, (64, 48), (9, 8, 7), ['/workspace/images/0.png'])"
    )
    rollout.call("_pil_images[0].crop((0, 0, 20, 10))")  # becomes picture 1
    rollout.context.images.append(store.add_image(Image.new("RGB", (5, 5))))  # a zoom's crop
    sizes = "[image.size for image in _pil_images]"
    assert rollout.text(sizes) == rollout.text(sizes) == "[(64, 48), (20, 10), (5, 5)]"
    assert rollout.text("from PIL import Image; [Image.open(path).size for path in _images]") == (
        "[(64, 48), (20, 10), (5, 5)]"
    )
    assert "interpreter" in rollout.failure("import os; os._exit(0)")[1]
    assert rollout.text(sizes) == "[(64, 48), (20, 10), (5, 5)]"  # the fresh interpreter knows them all
    rollout.close()


def test_a_picture_arrives_upright_and_in_rgb(rollout: PythonRollout) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (60, 40), 100).save(buffer, format="JPEG", exif=exif)
    ref = rollout.context.store.add_bytes(buffer.getvalue())
    rollout.context.images.append(ref)
    assert rollout.text("_pil_images[0].size, _pil_images[0].mode") == "((40, 60), 'RGB')"
    assert (ref.width_px, ref.height_px) == (40, 60)


# -- limits and mistakes ----------------------------------------------------------------------------------------------


def test_a_timeout_keeps_the_variables(rollout: PythonRollout) -> None:
    kind, message = rollout.failure("x = 5\nprint('started')\nwhile True: pass", timeout=1)
    assert kind is FailureKind.TIMEOUT
    assert message.startswith("started\nTimeout: the code was stopped after 1 s")
    assert rollout.text("x") == "5"
    assert rollout.failure("import time; time.sleep(99)", timeout=1)[0] is FailureKind.TIMEOUT
    assert rollout.failure("try:\n    while True: pass\nexcept Exception: pass", timeout=1)[0] is FailureKind.TIMEOUT


def test_a_call_that_is_cancelled_leaves_nothing_running(rollout: PythonRollout) -> None:
    async def cancel() -> None:
        rollout_call = asyncio.create_task(rollout.call_async("import time; x = 1; time.sleep(60)"))
        session = rollout.context.state["python"]
        while not session.lock.locked():
            await asyncio.sleep(0)
        interpreter = session.interpreter
        rollout_call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rollout_call
        assert interpreter.is_dead

    rollout.call("x = 0")
    asyncio.run(cancel())
    assert "NameError" in rollout.failure("x")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "code must be a string"),
        ({"code": 3}, "code must be a string"),
        ({"code": "1", "timeout": "5"}, "timeout must be a number of seconds from 1 to 20"),
        ({"code": "1", "timeout": 0}, "timeout must be"),
        ({"code": "1", "timeout": True}, "timeout must be"),
        ({"code": "1", "time": 1}, "there is no argument 'time'; the arguments are code, timeout"),
        ({"code": "x" * 200_001}, "at most 200000"),
    ],
)
def test_bad_arguments_say_what_to_write(rollout: PythonRollout, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ToolError, match=said) as caught:
        asyncio.run(rollout.tool.run(ToolCall(id="c", name="python", arguments=arguments), rollout.context))
    assert caught.value.kind is FailureKind.BAD_ARGUMENTS


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="memory_mb must be at least 64, got 63"):
        PythonTool(memory_mb=63)
    with pytest.raises(ConfigError, match="max_images must be at least 1, got 0"):
        PythonTool(max_images=0)


@pytest.mark.parametrize("option", ["memory_mb", "tmp_mb", "max_timeout_s", "max_images", "max_threads"])
@pytest.mark.parametrize("value", ["1024", 100.5, True, None])
def test_an_option_of_another_type_is_named(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be a whole number, got {value!r}. Write it without quotes"):
        PythonTool(**{option: value})


@pytest.mark.parametrize("option", ["allow_unsafe", "prestart"])
def test_a_switch_is_not_a_word(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be true or false, got 'false'"):
        PythonTool(**{option: "false"})


def test_no_timeout_outlasts_the_time_a_run_grants() -> None:
    PythonTool(max_timeout_s=540)
    with pytest.raises(ConfigError, match="max_timeout_s must be at most 540, got 541"):
        PythonTool(max_timeout_s=541)


def test_waiting_for_the_fork_server_is_not_the_rollouts(tool: PythonTool, rollout: PythonRollout) -> None:
    rollout.call("1")
    waited_s = rollout.context.waited_s
    assert waited_s > 0
    rollout.failure("import time; time.sleep(9)", timeout=1)
    assert rollout.context.waited_s == waited_s


@pytest.mark.parametrize("has_loop", [False, True])
def test_a_checked_tool_is_warm(has_loop: bool) -> None:
    tool = PythonTool()

    async def check() -> None:
        tool.check()

    asyncio.run(check()) if has_loop else tool.check()
    keeper = tool._server._keeper
    assert keeper is not None
    tool.check()
    rollout = PythonRollout(tool)
    assert rollout.text("1 + 1") == "2"
    assert tool._server._keeper is keeper
    tool.close()


def test_the_least_of_everything_is_enough_to_work() -> None:
    tool = PythonTool(memory_mb=64, tmp_mb=1, max_timeout_s=5, max_threads=1, max_images=1, max_output_chars=500)
    rollout = PythonRollout(tool)
    assert rollout.text("import numpy as np; int(np.ones((500, 500)).sum() > 0)") == "1"
    assert "can't start new thread" in rollout.failure("import threading; threading.Thread(target=print).start()")[1]
    assert "MemoryError" in rollout.failure("bytearray(10**8)")[1]
    tool.close()


def test_rollouts_run_side_by_side(tool: PythonTool) -> None:
    rollouts = [PythonRollout(tool) for _ in range(8)]

    async def all_at_once(code: str) -> list[str | None]:
        return [content[0].text for content in await asyncio.gather(*(r.call_async(code) for r in rollouts))]

    async def count() -> None:
        for number, rollout in enumerate(rollouts):
            await rollout.call_async(f"n = {number}")
        assert await all_at_once("n") == [str(number) for number in range(8)]
        assert await all_at_once("n + 1") == [str(number + 1) for number in range(8)]

    asyncio.run(count())
    for rollout in rollouts:
        rollout.close()
