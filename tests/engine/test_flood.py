"""A few lines a second are said, and none is left out of the count."""

from gokamsg.engine.flood import LINES, WITHIN_S, Flood


class Scene:
    def __init__(self) -> None:
        self.now = 100.0
        self.said: list[str] = []
        self.flood = Flood(self.said.append, lambda: self.now, "more of them")


def test_a_few_lines_are_said_as_they_come() -> None:
    scene = Scene()
    for number in range(LINES):
        scene.flood.add(number)
    assert scene.said == [str(number) for number in range(LINES)]
    scene.now += WITHIN_S
    scene.flood.look()
    assert len(scene.said) == LINES, "nothing was held back"


def test_the_rest_of_a_second_is_counted_and_said_when_it_is_over() -> None:
    scene = Scene()
    for _ in range(LINES + 1_234):
        scene.flood.add("line")
    scene.flood.look()
    assert len(scene.said) == LINES
    scene.now += WITHIN_S
    scene.flood.look()
    assert scene.said[LINES:] == ["1,234 more of them"]
    scene.flood.add("later")
    assert scene.said[LINES + 1 :] == ["later"], "a new second begins with the next line"


def test_a_second_begins_with_its_first_line() -> None:
    scene = Scene()
    scene.now += 0.9 * WITHIN_S
    scene.flood.look()
    for _ in range(LINES + 2):
        scene.flood.add("line")
    scene.now += 0.5 * WITHIN_S
    scene.flood.look()
    assert len(scene.said) == LINES


def test_what_is_held_back_is_said_at_the_end() -> None:
    scene = Scene()
    for _ in range(LINES + 2):
        scene.flood.add("line")
    scene.flood.end()
    assert scene.said[-1] == "2 more of them"
