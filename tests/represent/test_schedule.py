"""When fits are due."""

from service.represent.notices import Notice
from service.represent.schedule import Schedule


def notice(code: str, path: str = "age") -> Notice:
    return Notice(code, "context", path, 1, None, None, "", "", True)


def fits(schedule: Schedule, until: int, since: int = 0) -> list[int]:
    """Fit whenever it is due; return at how many events."""
    made = []
    for events in range(since, until):
        if schedule.is_due(events):
            schedule.fitted(events)
            made.append(events)
    return made


def test_fits_are_due_at_growing_sizes() -> None:
    assert fits(Schedule(), 20_481) == [40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 20480]
    assert fits(Schedule(100), 321, since=101) == [160, 320]
    assert fits(Schedule(160), 321, since=161) == [320]


def test_a_change_of_the_data_calls_for_fits_at_once_and_when_more_of_it_was_seen() -> None:
    schedule = Schedule(1280)
    assert not schedule.is_due(1500)
    schedule.heed([notice("changed_scale")], 1500)
    assert fits(schedule, 2561, since=1500) == [1500, 1628, 2524, 2560]


def test_what_is_told_again_calls_for_no_other_fit() -> None:
    schedule = Schedule(1280)
    schedule.heed([notice("unseen_field")], 1500)
    fits(schedule, 2530, since=1500)
    schedule.heed([notice("unseen_field")], 2530)
    assert not schedule.is_due(2530)
    schedule.heed([notice("unseen_field"), notice("unseen_field", "income")], 2540)
    assert schedule.is_due(2540)


def test_what_no_fit_mends_calls_for_none() -> None:
    schedule = Schedule(1280)
    codes = ("vanished_field", "out_of_range", "constant_field", "users_once", "narrow_rewards", "clock")
    schedule.heed([notice(code) for code in codes], 1500)
    assert fits(schedule, 2000, since=1500) == []


def test_data_that_change_all_the_time_are_fitted_as_the_log_grows() -> None:
    schedule = Schedule(163_840)
    made = 0
    for events in range(200_000, 230_000, 100):
        schedule.heed([notice("unseen_levels", str(events))], events)
        if schedule.is_due(events):
            schedule.fitted(events)
            made += 1
    assert made == 9  # changes at 200 000, 210 000 and 220 500 events, three fits each


def test_a_change_that_comes_close_after_another_is_heeded_later() -> None:
    schedule = Schedule(163_840)
    schedule.heed([notice("unseen_field")], 200_000)
    fits(schedule, 205_000, since=200_000)
    both = [notice("unseen_field"), notice("changed_type")]
    schedule.heed(both, 205_000)
    assert not schedule.is_due(205_000)
    schedule.heed(both, 210_000)
    assert schedule.is_due(210_000)
