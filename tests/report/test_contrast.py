"""Text on the page can be read in light and in dark mode: contrast as WCAG 2 defines it, at least 4.5."""

import re
from pathlib import Path

import pytest

import prunus.report

TEMPLATES = Path(prunus.report.__file__).parent / "templates"


def colours(mode, *, share=False):
    """The colours of both pages by name; with `share`, the part of a role's colour in the ground behind it."""
    found = {}
    for name in ("report.css", "groups.css"):
        light, dark = re.findall(r":root \{(.*?)\}", (TEMPLATES / name).read_text(), re.DOTALL)
        found |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6}|\d+%)", light if mode == "light" else dark))
    return int(found["wash"][:-1]) / 100 if share else found


def mixed(a, b, share):
    """`share` of colour a over colour b."""
    both = [[int(c[1:][i : i + 2], 16) for i in (0, 2, 4)] for c in (a, b if len(b) == 7 else "#" + b[1:] * 2)]
    return "#" + "".join(f"{round(share * x + (1 - share) * y):02x}" for x, y in zip(*both))


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_formula():
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("text", ["ink", "soft", "good", "bad"])
def test_text_stands_out(mode, text):
    found = colours(mode)
    for ground in ("ground", "card"):
        assert contrast(found[text], found[ground]) >= 4.5, (text, ground)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_what_is_kept_stands_out_from_what_was_there(mode):
    found = colours(mode)
    assert contrast(found["after"], found["before"]) >= 2
    assert contrast(found["after"], found["card"]) >= 3
    assert contrast(found["before"], found["card"]) >= 2


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("role", ["made", "read", "scaled", "other"])
def test_the_slices_of_a_group_stand_out(mode, role):
    found, share = colours(mode), colours(mode, share=True)
    assert contrast(found[role], mixed(found[role], found["card"], share)) >= 4.5
    assert contrast(found["soft"], found["stage-b"]) >= 4.5  # small print of the group that is chosen
