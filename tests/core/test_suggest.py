import pytest

from batchcal.core.suggest import closest, did_you_mean


@pytest.mark.parametrize(
    ("typed", "choices", "meant"),
    [
        ("tcmaloc", ("default", "thp", "retain", "tcmalloc", "jemalloc", "mimalloc"), "tcmalloc"),
        ("cdua", ("auto", "cpu", "cuda"), "cuda"),
        ("COSINE ", ("constant", "linear", "cosine"), "cosine"),
        ("buckets", ("plain", "greedy", "bucketed"), "bucketed"),
        ("yml", ("table", "json", "sh", "dotenv"), None),
        ("", ("memory",), None),
    ],
)
def test_a_misspelled_value_gets_the_closest_suggestion(typed: str, choices: tuple[str, ...], meant: str | None) -> None:
    assert closest(typed, choices) == meant
    assert did_you_mean(typed, choices) == (f" (did you mean {meant}?)" if meant else "")
