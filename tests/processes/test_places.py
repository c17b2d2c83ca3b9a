"""Who of the processes of a run keeps the others waiting."""

from dataclasses import replace

from osft.processes.places import Place, describe_hang, line_of_main_thread


def place(global_rank: int, **changes: object) -> Place:
    usual = Place(
        global_rank=global_rank, beat=5, order=9, phase="step 7", seconds=1860.0, line="loop.py:1 in f",
        in_collective=True,
    )  # fmt: skip
    return replace(usual, **changes)


def later(*places: Place) -> list[Place]:
    return [replace(place, beat=place.beat + 4) for place in places]


def test_a_process_that_posts_nothing_any_more_is_named() -> None:
    places = [place(0), place(1, phase="step 6", order=8), place(2)]

    error = describe_hang(places, [*later(places[0]), places[1], *later(places[2])])

    assert str(error).startswith(
        "rank 1 has stopped answering in step 6; rank 0, 2 waited for it in step 7. Look at that process"
    )


def test_a_process_that_has_entered_fewer_phases_is_named_with_its_line() -> None:
    places = [place(0), place(1, phase="step 6", order=8, line="nfs.py:3 in read")]

    error = describe_hang(places, later(*places))

    assert str(error).startswith(
        "rank 1 has been in step 6 for 31.0 min, at nfs.py:3 in read; rank 0 waited for it in step 7."
    )


def test_of_processes_in_one_step_those_outside_of_collectives_are_named() -> None:
    places = [place(0), place(1), place(2, in_collective=False)]

    assert str(describe_hang(places, later(*places))).startswith("rank 2 has been in step 7")


def test_processes_that_cannot_be_told_apart_are_all_named() -> None:
    places = [place(0), place(1)]

    message = str(describe_hang(places, later(*places)))

    assert "rank 0 has been in step 7 for 31.0 min" in message
    assert "rank 1 has been in step 7 for 31.0 min" in message


def test_the_line_of_the_main_thread_is_that_of_its_innermost_frame() -> None:
    line, in_collective = line_of_main_thread()

    assert "places.py:" in line
    assert not in_collective
