"""Numbers and dates as people write them."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigmodel.errors import UserError
from bigmodel.readers import cells, dates


@pytest.mark.parametrize(
  ("texts", "decimal", "values", "notes"),
  [
    (["4M", "0.07B", "1.5k", "2T"], "", [4e6, 7e7, 1500, 2e12], ["1e9", "1e6", "1e12", "1e3"]),
    (["7b", "350m"], "", [7e9, 350e6], ["b is 1e9", "m is 1e6"]),
    (["6.7 B", "10 million", "3 bn"], "", [6.7e9, 1e7, 3e9], ["B is", "bn is", "million is"]),
    (["77%", "0%"], "", [0.77, 0], ["77% is .77"]),
    (["$1,234", "-$5.5", "($7)"], "", [1234, -5.5, -7], ["commas between", "$ left out", "parentheses"]),
    (["1,234", "2,345,678"], "", [1234, 2345678], ["commas between thousands"]),
    (["1,234"], ".", [1234], ["commas between thousands"]),
    (["1,234"], ",", [1.234], ["decimal commas"]),
    (["1.234", "12.500"], ",", [1234, 12500], ["points between thousands"]),
    (["1.234,5", "7"], "", [1234.5, 7], ["decimal commas", "points between thousands"]),
    (["1 234,5", "1\u202f234", "1\u00a0000"], ",", [1234.5, 1234, 1000], ["decimal commas", "blanks between"]),
    (["1'234.5", "1\u2019000"], "", [1234.5, 1000], ["apostrophes between thousands"]),
    (["12,34,567"], "", [1234567], ["commas between thousands"]),
    (["1_000_000", "1.2×10^9", "1.2x10\u2079", "1e9", "\u22125"], "", [1e6, 1.2e9, 1.2e9, 1e9, -5], []),
    (["5", "?", "-", "n/a", "#N/A", "None", "NaN"], "", [5, None, None, None, None, None, None], []),
    (["1.234", "0.5"], "", [1.234, 0.5], []),
    (["7,715", "6,080"], cells.UNSETTLED, [7.715, 6.08], ["decimal commas"]),
    (["4,000,000", "1,234"], cells.UNSETTLED, [4e6, 1234], ["commas between thousands"]),
    (["$1,234", "$999,999"], "", [1234, 999999], ["commas between thousands", "$ left out"]),
    (["100,000 €", "250,500 €"], "", [1e5, 250500], ["commas between thousands", "€ left out"]),
    (["4000000", "8M", "0"], "", [4e6, 8e6, 0], ["M is 1e6"]),
    (["500", "1.2K", "3M"], "", [500, 1200, 3e6], ["K is 1e3", "M is 1e6"]),
  ],
)
def test_numbers(texts, decimal, values, notes):
  found = cells.numbers(texts, "x", decimal, leave_out_unit=False)
  assert [found.values[text] for text in texts] == values
  assert not found.others
  assert len(found.notes) == len(notes)
  assert all(any(note in text for text in found.notes) for note in notes)


@pytest.mark.parametrize(
  ("texts", "message"),
  [
    (["1,234", "2,345"], "column 'x': '1,234' may be 1234 or 1.234"),
    (["1,234 €", "1,459 €"], "'1,234 €' may be 1234 or 1.234"),
    (["4", "8M"], "has '4' beside '8M'; write all"),
    (["5 €", "1.234 €"], "column 'x': '1.234 €' may be 1234 or 1.234"),
    (["1,5", "2.5"], "a decimal comma .'1,5'. beside decimal points"),
    (["4m", "5m"], r"'4m' may be million \(M\) or milli"),
    (["5%", "0.3"], "percents .'5%'. beside '0.3'"),
    (["$5", "€7"], "several currencies"),
  ],
)
def test_numbers_that_may_be_two_are_refused(texts, message):
  with pytest.raises(UserError, match=message):
    cells.numbers(texts, "x", "", leave_out_unit=False)


@pytest.mark.parametrize("texts", [["400,000", "123,500"], ["4,000", "12,000"], ["$1,234", "$5,678"]])
def test_commas_in_files_with_semicolons_may_still_be_in_doubt(texts):
  with pytest.raises(UserError, match="no other number of the file settles it"):
    cells.numbers(texts, "x", cells.UNSETTLED, leave_out_unit=False)


@pytest.mark.parametrize("text", ["1/2", "12-31", "2024-01-01", "1 2 3", "0x1F", "1.2.3", "a1", "1,5,7", "12 GB"])
def test_other_texts_are_no_numbers(text):
  found = cells.numbers([text], "x", "", leave_out_unit=False)
  assert found.others == [text]


def test_codes_are_not_numbers_that_lack_their_multiple():
  assert cells.numbers(["0023", "0024", "002b", "002f"], "x", "", leave_out_unit=True).others == ["002f"]


def test_a_unit_that_all_share_is_left_out_where_that_is_harmless():
  found = cells.numbers(["5 kg", "7.5 kg"], "x", "", leave_out_unit=True)
  assert (found.values, found.notes) == ({"5 kg": 5, "7.5 kg": 7.5}, ["kg left out"])
  assert cells.numbers(["5 kg", "7.5 g"], "x", "", leave_out_unit=True).others == ["5 kg", "7.5 g"]


@pytest.mark.parametrize(
  ("texts", "mark"),
  [
    (["7.71461", "x"], "."),
    (["7,71461"], ","),
    (["4,000,000"], "."),
    (["4.000.000", "1.234"], ","),
    (["1,234", "Doe, J."], ""),
    (["1,5", "1.5"], ""),
    (["1.234e9"], "."),
  ],
)
def test_the_mark_of_decimals_of_a_file(texts, mark):
  assert cells.file_decimal(texts) == mark


D = datetime.datetime


@pytest.mark.parametrize(
  ("texts", "values"),
  [
    (["12/31/2024", "01/02/2024"], [D(2024, 12, 31), D(2024, 1, 2)]),
    (["31.12.2024", "1.2.2024"], [D(2024, 12, 31), D(2024, 2, 1)]),
    (["12/31/24", "1/2/99"], [D(2024, 12, 31), D(1999, 1, 2)]),
    (["12/31/2024 11:59 PM", "1/2/2024 12:00 am"], [D(2024, 12, 31, 23, 59), D(2024, 1, 2)]),
    (["2024-01-01T00:30:00Z", "2024-01-01 02:00:00+02:00"], [D(2024, 1, 1, 0, 30), D(2024, 1, 1)]),
    (["2024-02", "2023/12"], [D(2024, 2, 1), D(2023, 12, 1)]),
    (["31 Dec 2024", "Dec 30, 2024", "29-Dec-24", "December 2024"], [D(2024, 12, d) for d in (31, 30, 29, 1)]),
    (["Tue, 31 Dec 2024 10:00:00 GMT"], [D(2024, 12, 31, 10)]),
    (["13/01/2024", "n/a"], [D(2024, 1, 13), None]),
  ],
)
def test_dates(texts, values):
  found = dates.dates(texts, "x")
  assert [found.values[text] for text in texts] == values
  assert not found.others


@pytest.mark.parametrize(
  ("texts", "message"),
  [
    (["01/02/2024", "03/04/2024"], "'01/02/2024' may have the day first or the month first"),
    (["24-12-31"], "may have the year first or the day first"),
    (["31/12/2024", "12/31/2024"], "'31/12/2024' and '12/31/2024' are dates of different forms"),
    (["2024-01-01T00:00Z", "2024-01-01T00:00"], "some of its times have a time zone"),
  ],
)
def test_dates_that_may_be_two_are_refused(texts, message):
  with pytest.raises(UserError, match=message):
    dates.dates(texts, "x")


@pytest.mark.parametrize(
  "text", ["1.2.3", "555-12-3456", "2024-13-01", "02/30/2024", "20241231", "45000", "hello 2024"]
)
def test_other_texts_are_no_dates(text):
  assert dates.dates([text], "x").others == [text]


LETTERS = st.text("0123456789.,-+/ :'$€%kMmBeT()jandec\u00a0", max_size=14)


@pytest.mark.fuzz
@given(texts=st.lists(LETTERS, max_size=5), decimal=st.sampled_from((".", ",", "?", "")))
def test_any_texts_are_read_or_refused_in_one_line(texts, decimal):
  for read in (lambda: cells.numbers(texts, "x", decimal, leave_out_unit=True), lambda: dates.dates(texts, "x")):
    found = outcome(read)
    if isinstance(found, str):
      assert "\n" not in found
    else:
      assert {*found.values, *found.others} == set(texts)


def outcome(read):
  try:
    return read()
  except UserError as error:
    return str(error)
