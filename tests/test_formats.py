"""Reading examples and queries from every format, what becomes of bad rows, and writing records."""

import csv
import gzip
import io
import json
import sqlite3
import subprocess
import sys
from datetime import date, datetime
from types import SimpleNamespace

import numpy as np
import pandas
import polars
import pyarrow
import pytest
from hypothesis import example as case
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from retriever.errors import BadRows, InvalidInput, TemplateError
from retriever.example import Example, as_query
from retriever.formats import (
    BadRow,
    BadRowLog,
    Fields,
    FileSource,
    Limits,
    open_writer,
    read_examples,
    read_queries,
    writer_format,
)
from retriever.formats.csv_records import Line, split_records

ROWS = [
    {"id": "a", "input": "where is my card?", "output": "card_arrival", "label": "card", "lang": "en"},
    {"id": "b", "input": 'say "hi", then\nwait', "output": "grüße ☃", "label": "talk", "lang": "de"},
    {"id": "c", "input": "one\u2028two", "output": " spaces stay ", "label": "x", "lang": "en"},
]
EXAMPLES = [Example(r["id"], r["input"], r["output"], label=r["label"], meta={"lang": r["lang"]}) for r in ROWS]


def read(source, reader=read_examples, **options):
    """The examples, and the bad rows as (line, reason)."""
    log = BadRowLog()
    found = list(reader(source, on_bad=log, **options))
    return found, [(row.line, row.reason) for row in log.rows]


def rejected(row, reader=read_examples, **options):
    """The reason for which a single row is bad."""
    found, bad = read([row], reader, **options)
    assert found == []
    [(line, reason)] = bad
    assert line == 1
    return reason


def jsonl_reason(tmp_path, line, **options):
    """The reason for which a line between two good ones is bad."""
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b'{"input":"1","output":"x"}\n' + line + b'\n{"input":"2","output":"x"}\n')
    found, bad = read(path, **options)
    assert [e.input for e in found] == ["1", "2"]
    [(number, reason)] = bad
    assert number == 2
    return reason


def write_jsonl(path, rows=ROWS):
    with path.open("wb") as file, open_writer(file, "jsonl") as writer:
        for row in rows:
            writer.write(row)


def write_csv(path, rows=ROWS, delimiter=",", **options):
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, **options)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows=ROWS):
    with path.open("wb") as file, open_writer(file, "parquet") as writer:
        for row in rows:
            writer.write(row)


def write_sqlite(path, rows=ROWS, table="pool"):
    with sqlite3.connect(path) as database:
        columns = ", ".join(f'"{name}"' for name in rows[0])
        database.execute(f"create table [{table}] ({columns})")
        holes = ", ".join("?" * len(rows[0]))
        database.executemany(f"insert into [{table}] values ({holes})", [list(row.values()) for row in rows])
    database.close()


WRITERS = {
    "pool.jsonl": write_jsonl,
    "pool.ndjson": write_jsonl,
    "pool.json": lambda path: path.write_text(json.dumps(ROWS)),
    "pool.csv": write_csv,
    "pool.tsv": lambda path: write_csv(path, delimiter="\t"),
    "pool.parquet": write_parquet,
    "pool.sqlite": write_sqlite,
    "pool.sqlite3": write_sqlite,
    "POOL.DB": write_sqlite,
}


# --- every format gives the same examples


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_examples(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name) == (EXAMPLES, [])
    assert read(str(tmp_path / name)) == (EXAMPLES, [])


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        tuple(ROWS),
        EXAMPLES,
        [ROWS[0], EXAMPLES[1], ROWS[2]],
        pandas.DataFrame(ROWS),
        polars.DataFrame(ROWS),
        pyarrow.Table.from_pylist(ROWS),
        pyarrow.RecordBatch.from_pylist(ROWS),
    ],
    ids=["list", "tuple", "examples", "mixed", "pandas", "polars", "arrow table", "arrow batch"],
)
def test_data_in_memory_gives_the_same_examples(data):
    assert read(data) == (EXAMPLES, [])


def test_a_generator_is_read_lazily():
    pulled = []

    def rows():
        for number in range(10):
            pulled.append(number)
            yield {"input": number, "output": "x"}

    found = read_examples(rows(), on_bad=BadRowLog())
    assert pulled == []
    assert next(found).input == 0
    assert pulled == [0]


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.csv", "pool.json"])
def test_a_gzipped_text_file_is_unpacked(tmp_path, name):
    WRITERS[name](tmp_path / name)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert read(packed) == (EXAMPLES, [])


def test_a_cut_gzip_file_is_refused(tmp_path):
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(b'{"input":"1","output":"x"}\n')[:-5])
    with pytest.raises(InvalidInput, match="cannot be read"):
        read(tmp_path / "p.jsonl.gz")


def test_standard_input_is_jsonl_unless_a_format_is_named(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"input":"1","output":"x"}\n{')))
    log = BadRowLog()
    assert [e.input for e in read_examples("-", on_bad=log)] == ["1"]
    assert str(log.rows[0]).startswith("stdin:2: not JSON: ")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"input,output\n1,x\n")))
    assert [e.input for e in read("-", format="csv")[0]] == ["1"]


def test_a_named_format_overrides_the_suffix(tmp_path):
    write_csv(tmp_path / "pool.txt")
    assert read(tmp_path / "pool.txt", format="csv") == (EXAMPLES, [])


@pytest.mark.parametrize("name", ["pool.txt", "pool", "pool.parquet.gz", "pool.gz"])
def test_an_unknown_suffix_is_refused_and_the_known_ones_named(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(InvalidInput, match=r"\.jsonl.*\.csv.*\.parquet"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere.jsonl", {}, "there is no file nowhere.jsonl"),
        (".", {"format": "csv"}, "directory"),
        ("-", {"format": "parquet"}, "standard input"),
        ("-", {"format": "excel"}, "excel"),
        ("-", {"table": "t"}, "table"),
        ("-", {"encoding": "no-such"}, "no-such"),
        ("-", {"encoding": "utf-16"}, "extends ASCII"),
        ("-", {"encoding": "cp037"}, "extends ASCII"),
        ([], {"format": "csv"}, "leave them out"),
        ({"input": "x"}, {}, "several rows"),
        (b"text", {}, "bytes"),
        (5, {}, "int"),
    ],
)
def test_a_source_or_option_that_cannot_be_used_is_refused_before_reading(source, options, message):
    with pytest.raises(InvalidInput, match=message):
        read_examples(source, on_bad=BadRowLog(), **options)


def test_an_encoding_for_parquet_is_refused(tmp_path):
    write_parquet(tmp_path / "p.parquet")
    with pytest.raises(InvalidInput, match="leave the encoding out"):
        read(tmp_path / "p.parquet", encoding="latin-1")


def test_a_file_source_holds_how_it_is_read(tmp_path):
    (tmp_path / "p.txt").write_bytes("input,output\ncafé,x\n".encode("latin-1"))
    source = FileSource(str(tmp_path / "p.txt"), format="csv", encoding="latin-1")
    [found], bad = read(source)
    assert (found.input, bad) == ("café", [])
    with pytest.raises(InvalidInput, match="beside a FileSource; leave them out: it holds its own"):
        read(source, format="csv")
    with sqlite3.connect(tmp_path / "p.db") as database:
        for table in ("a", "b"):
            database.execute(f"CREATE TABLE {table} AS SELECT '{table}' AS input, 'x' AS output")
    database.close()
    [found], _ = read(FileSource(str(tmp_path / "p.db"), table="b"))
    assert found.input == "b"


# --- JSON lines


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"input": "x"', "not JSON: Expecting ',' delimiter at column 14"),
        (b"nope", "not JSON: Expecting value at column 1"),
        (b'{"input": "x', "not JSON: Unterminated string starting at column 11"),
        (b'{"input":"1","output":"2"} {}', "not JSON: Extra data"),
        (b'{"input":"a\x00b","output":"x"}', "not JSON: Invalid control character"),
        (b'["input"]', "a list, expected an object"),
        (b'"input"', "a text, expected an object"),
        (b"null", "null, expected an object"),
        (b'{"input":"x"}', "missing field 'output'; the row has 'input'"),
        (b'{"output":"x"}', "missing field 'input'"),
        (b'{"input":"x","output":null}', "missing field 'output'"),
        (b'{"input":NaN,"output":"x"}', "field 'input': NaN is not a finite number"),
        (b'{"input":"x","output":"x","score":-Infinity}', "field 'score': Infinity is not a finite number"),
        (b'{"input":[1e999],"output":"x"}', "field 'input': Infinity is not a finite number"),
        (b'{"input":"\\ud800","output":"x"}', r"field 'input': a lone surrogate '\ud800' at character 0"),
        (b'{"input":"x","output":"x","a":[{"\\udfff":1}]}', "field 'a': a lone surrogate"),
        (b'{"\\ud800":1,"input":"x","output":"x"}', "a lone surrogate"),
        (b'{"input":"x","input":"y","output":"x"}', "the key 'input' stands twice in one object"),
        (b'{"input":"x","output":{"a":1,"a":1}}', "field 'output': the key 'a' stands twice"),
        (b'{"input":1' + b"0" * 5000 + b',"output":"x"}', "field 'input': an integer of 5001 digits"),
        (b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b',"output":"x"}', "nested too deep"),
        (b'{"input":' + b"[" * 101 + b"]" * 101 + b',"output":"x"}', "field 'input': nested too deep"),
        (b'{"input":"caf\xe9","output":"x"}', "not utf-8: byte 0xe9 at position 13; name the encoding"),
        (b'{"input":"\xed\xa0\x80","output":"x"}', "not utf-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"input":"1","output":"x"}', "same content as line 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "line",
)
def test_a_bad_line_is_set_aside_with_its_number_and_its_neighbours_are_read(tmp_path, line, reason):
    assert reason in jsonl_reason(tmp_path, line)


def test_a_broken_encoding_names_the_option_that_fixes_it(tmp_path):
    assert "--encoding latin-1" in jsonl_reason(tmp_path, b'{"input":"caf\xe9","output":"x"}')
    (tmp_path / "l.jsonl").write_bytes(b'{"input":"caf\xe9","output":"x"}\n')
    assert read(tmp_path / "l.jsonl", encoding="latin-1")[0][0].input == "café"


def test_a_field_over_the_size_cap_makes_the_row_bad(tmp_path):
    fits, over = b'{"input":"12345678","output":"x"}', '{"input":"1234567é","output":"x"}'.encode()
    assert jsonl_reason(tmp_path, over, limits=Limits(field_bytes=8)) == "field 'input': 9 bytes, at most 8 are allowed"
    (tmp_path / "ok.jsonl").write_bytes(fits)
    assert len(read(tmp_path / "ok.jsonl", limits=Limits(field_bytes=8))[0]) == 1


@pytest.mark.parametrize("over", [1, 5, 3 * 1024 * 1024])
def test_a_line_over_the_size_cap_is_passed_over(tmp_path, over):
    limits = Limits(row_bytes=40)
    line = b'{"input":"' + b"x" * (40 + over - 25) + b'","output":"x"}'
    assert len(line) == 40 + over
    assert jsonl_reason(tmp_path, line, limits=limits) == "the line has more than 40 bytes"


def test_a_line_of_exactly_the_size_cap_is_read_also_at_the_end_of_the_file(tmp_path):
    line = b'{"input":"xxxxxxxxxx","output":"abcde"}'
    for end in (b"\n", b""):
        (tmp_path / "p.jsonl").write_bytes(line + end)
        assert len(read(tmp_path / "p.jsonl", limits=Limits(row_bytes=len(line)))[0]) == 1


def test_a_field_of_ten_megabytes_passes(tmp_path):
    text = "x" * 10_000_000
    write_jsonl(tmp_path / "p.jsonl", [{"input": text, "output": "y"}])
    assert read(tmp_path / "p.jsonl")[0][0].input == text


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\ufeff", "\u202e", "\U000e0041"])
def test_only_a_line_feed_ends_a_line(tmp_path, mark):
    row = json.dumps({"input": f"a{mark}b", "output": "x"}, ensure_ascii=mark < " ")
    (tmp_path / "p.jsonl").write_bytes(row.encode() + b"\n")
    [found], bad = read(tmp_path / "p.jsonl")
    assert (found.input, bad) == (f"a{mark}b", [])


def test_a_byte_order_mark_crlf_blank_lines_and_an_unfinished_last_line_are_fine(tmp_path):
    content = '\ufeff{"input":"1","output":"x"}\r\n\r\n  \n\n{"input":"a\\u0000b","output":"x"}'
    (tmp_path / "p.jsonl").write_bytes(content.encode())
    found, bad = read(tmp_path / "p.jsonl")
    assert ([e.input for e in found], bad) == (["1", "a\0b"], [])


def test_utf16_is_named(tmp_path):
    (tmp_path / "p.csv").write_bytes("input,output\n1,2\n".encode("utf-16"))
    with pytest.raises(InvalidInput, match="is UTF-16"):
        read(tmp_path / "p.csv")


def test_an_empty_file_holds_no_examples(tmp_path):
    (tmp_path / "p.jsonl").touch()
    assert read(tmp_path / "p.jsonl") == ([], [])


# --- a JSON array


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "an object; expected a JSON array"),
        ('{"a": 1}\n{"a": 2}', "not JSON: Extra data at line 2, column 1.*jsonl"),
        ("[" * 100_000, "nested too deep"),
        ("", "not JSON"),
    ],
    ids=["object", "lines", "deep", "empty"],
)
def test_a_json_file_that_is_no_array_is_refused(tmp_path, text, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InvalidInput, match=message):
        read(tmp_path / "p.json")


def test_a_bad_element_of_an_array_spoils_no_other(tmp_path):
    good = '{"input":"1","output":"x"}'
    (tmp_path / "p.json").write_text(f'[{{"input":NaN,"output":1}}, {good}, {{"input":1,"input":2}}, 7]')
    found, bad = read(tmp_path / "p.json")
    assert [e.input for e in found] == ["1"]
    assert [line for line, _ in bad] == [1, 3, 4]


# --- CSV and TSV


def write(tmp_path, text, name="p.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_cells_are_text_and_empty_ones_are_missing(tmp_path):
    path = write(tmp_path, "input,output,label,n,note\n1,2,,3,\n,2,,,\n4,,,,\n")
    found, bad = read(path)
    assert [e.to_dict() | {"id": ""} for e in found] == [{"id": "", "input": "1", "output": "2", "meta": {"n": "3"}}]
    assert [(line, reason[:22]) for line, reason in bad] == [
        (3, "missing field 'input';"),
        (4, "missing field 'output'"),
    ]


def test_another_number_of_fields_than_the_header_makes_a_record_bad(tmp_path):
    path = write(tmp_path, "id,input,output,label\na,b,c,d,e\na,b\n1,2,3,4\n")
    found, bad = read(path)
    assert [e.id for e in found] == ["1"]
    assert bad == [(2, "5 fields, expected 4"), (3, "2 fields, expected 4")]


def test_a_field_over_128_kib_makes_only_its_record_bad(tmp_path):
    limit = 131_072
    rows = [("x" * limit, "1"), ("y" * (limit + 1), "2"), ('"\n' * 100_000, "3"), ("after", "4")]
    write_csv(tmp_path / "p.csv", [{"input": i, "output": o} for i, o in rows])
    found, bad = read(tmp_path / "p.csv")
    assert [e.output for e in found] == ["1", "4"]
    assert bad == [
        (3, "field 'input': 131073 bytes, at most 131072 are allowed in CSV and TSV"),
        (4, "field 'input': 200000 bytes, at most 131072 are allowed in CSV and TSV"),
    ]
    assert csv.field_size_limit() == limit
    assert len(read(tmp_path / "p.csv", limits=Limits(csv_field_bytes=1_000_000))[0]) == 4


def test_line_numbers_count_the_lines_inside_quoted_fields(tmp_path):
    path = write(tmp_path, 'input,output\r\n"a\r\nb\n\nc",1\r\n\r\nbad\r\nd,2\r\n')
    found, bad = read(path)
    assert [e.input for e in found] == ["a\r\nb\n\nc", "d"]
    assert bad == [(7, "1 fields, expected 2")]


@pytest.mark.parametrize(
    ("text", "inputs", "bad_lines"),
    [
        ('5" pipe,1\nb,2\n', ['5" pipe', "b"], []),  # a quote inside an unquoted field is a character
        ('a "quoted" word,1\nb,2\n', ['a "quoted" word', "b"], []),
        ('"never closed,1\nb,2\nc,3\n', ["b", "c"], [2]),
        ('a,1\n"never closed,2\n"b",3\nc,4\n', ["a", "b", "c"], [3]),  # the next quote closes nothing
        ('"said "hi" there",1\nb,2\n', ["b"], [2]),
        ('a,"\nb,2\n', ["b"], [2]),
        ('"\n"\n"\nb,2\n', ["b"], [2, 4]),  # a one-field record, then a quote that is never closed
        ('a,1\nb,"', ["a"], [3]),
    ],
)
def test_a_stray_quote_costs_its_own_record_and_no_other(tmp_path, text, inputs, bad_lines):
    found, bad = read(write(tmp_path, "input,output\n" + text))
    assert [e.input for e in found] == inputs
    assert [line for line, _ in bad] == bad_lines


def test_an_unclosed_quote_is_given_up_at_the_size_cap(tmp_path):
    path = write(tmp_path, 'input,output\n"open,1\n' + "".join(f"row{n},x\n" for n in range(100)))
    found, bad = read(path, limits=Limits(row_bytes=200))
    assert len(found) == 100
    assert bad == [(2, "a quoted field is not closed within 200 bytes or 500000 lines")]


def test_an_overlong_line_in_csv_is_passed_over(tmp_path):
    path = write(tmp_path, f'input,output\n{"x" * 100},1\n"a,1\n"{"x" * 100}",1\nb,2\n')
    found, bad = read(path, limits=Limits(row_bytes=50))
    assert [e.input for e in found] == ["b"]
    assert [line for line, _ in bad] == [2, 3, 4]


def test_a_broken_cell_makes_only_its_record_bad(tmp_path):
    found, bad = read(write(tmp_path, b"input,output\ncaf\xe9,1\nb,2\n"))
    assert [e.input for e in found] == ["b"]
    assert "field 'input': not utf-8: byte 0xe9 at position 3" in bad[0][1]


def test_csv_with_a_byte_order_mark_nul_and_another_encoding(tmp_path):
    [found], _ = read(write(tmp_path, "\ufeffinput,output\na\0b,\ufeffx\n"))
    assert (found.input, found.output) == ("a\0b", "\ufeffx")
    [found], _ = read(write(tmp_path, "input,output\ngrüße,表\n".encode("gb18030")), encoding="gb18030")
    assert (found.input, found.output) == ("grüße", "表")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header row"),
        ('"input,output\n1,2\n', "never closed; expected a header row"),
        ("input,output,input\n1,2,3\n", "two columns named 'input'"),
        (b"caf\xe9\n", "header row is not utf-8"),
    ],
)
def test_a_file_without_a_usable_header_is_refused(tmp_path, text, message):
    with pytest.raises(InvalidInput, match=message):
        read(write(tmp_path, text))


def records_of(content, delimiter=b","):
    lines = (Line(number, line) for number, line in enumerate(io.BytesIO(content), 1))
    return list(split_records(lines, delimiter, 10**6))


CELLS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('",\n\r\t'), max_size=8)
TABLES = st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), max_size=6))


@given(TABLES, st.sampled_from(",\t"), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
@case([['"'], ["\n"], ['""\r\n"']], ",", csv.QUOTE_MINIMAL)
def test_what_the_csv_module_writes_is_split_as_it_was(table, delimiter, quoting):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(table)
    content = file.getvalue().encode()
    found = [[cell.decode() for cell in record.cells] for record in records_of(content, delimiter.encode())]
    assert found == table


@given(st.binary(max_size=60) | st.text('a",\n\r', max_size=60).map(str.encode))
def test_every_line_of_any_text_is_part_of_a_record_a_problem_or_blank(content):
    covered = []
    for record in records_of(content):
        covered += range(record.line, record.line + 1 + b"".join(record.cells).count(b"\n"))
    assert covered == sorted(set(covered))
    for number, line in enumerate(io.BytesIO(content), 1):
        assert number in covered or not line.strip(b"\r\n")


# --- Parquet and SQLite


def test_parquet_is_read_across_row_groups(tmp_path):
    write_parquet(tmp_path / "p.parquet", [{"input": str(n), "output": "x"} for n in range(2500)])
    assert parquet.ParquetFile(tmp_path / "p.parquet").num_row_groups == 3
    assert [e.input for e in read(tmp_path / "p.parquet")[0]] == [str(n) for n in range(2500)]


def test_bad_values_of_parquet_cost_one_row(tmp_path):
    broken = pyarrow.array([b"ok", b"\xff", b"fine"]).view(pyarrow.string())
    table = pyarrow.table({"input": broken, "output": ["x"] * 3, "n": [1.0, 2.0, float("nan")]})
    parquet.write_table(table, tmp_path / "p.parquet")
    found, bad = read(tmp_path / "p.parquet")
    assert [e.input for e in found] == ["ok"]
    assert [(line, reason[:22]) for line, reason in bad] == [
        (2, "a value that cannot be"),
        (3, "field 'n': NaN is not "),
    ]


def test_nested_dates_and_nulls_of_parquet(tmp_path):
    rows = [{"input": {"q": "x"}, "output": "y", "label": ["a", "b"], "meta": {"day": date(2024, 2, 29), "gone": None}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    [found], _ = read(tmp_path / "p.parquet")
    assert (found.input, found.label, found.meta) == ({"q": "x"}, ["a", "b"], {"day": "2024-02-29"})


@pytest.mark.parametrize("name", ["p.parquet", "p.sqlite"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is neither Parquet nor SQLite" * 100)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read(tmp_path / name)


def test_the_table_is_named_when_there_are_several(tmp_path):
    path = tmp_path / "p.db"
    write_sqlite(path)
    write_sqlite(path, ROWS[:1], table='odd "name"')
    with pytest.raises(InvalidInput, match="2 tables") as caught:
        read(path)
    assert "'pool'" in str(caught.value)
    assert read(path, table="pool") == (EXAMPLES, [])
    assert read(path, table='odd "name"') == (EXAMPLES[:1], [])
    with pytest.raises(InvalidInput, match=r"no table 'other'.*'pool'"):
        read(path, table="other")


def test_bad_values_of_sqlite_cost_one_row_and_the_file_stays_untouched(tmp_path):
    path = tmp_path / "p.db"
    write_sqlite(path, [{"input": "a", "output": 1}, {"input": b"blob", "output": 1}, {"input": 2.5, "output": None}])
    with sqlite3.connect(path) as database:
        database.execute("insert into pool values (cast(x'ff' as text), 1), ('z', 1)")
    database.close()
    before = path.read_bytes()
    path.chmod(0o444)
    found, bad = read(path)
    assert [(e.input, e.output) for e in found] == [("a", 1), ("z", 1)]
    assert [line for line, _ in bad] == [2, 3, 4]
    assert "type bytes" in bad[0][1]
    assert "not utf-8" in bad[2][1]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.db"]


# --- data in memory


def test_gaps_of_a_pandas_frame_are_missing_values():
    frame = pandas.DataFrame(
        {
            "input": ["a", "b", None],
            "output": ["x", None, "z"],
            "label": pandas.array([1, None, 3], dtype="Int64"),
            "when": [pandas.Timestamp("2024-01-02"), pandas.NaT, pandas.NaT],
            "score": [0.5, float("nan"), 1.0],
        }
    )
    found, bad = read(frame)
    assert [e.to_dict() for e in found] == [
        {**found[0].to_dict(), "label": 1, "meta": {"when": "2024-01-02T00:00:00", "score": 0.5}}
    ]
    assert [line for line, _ in bad] == [2, 3]
    assert "missing field 'output'" in bad[0][1]


@pytest.mark.parametrize("frame", [polars.DataFrame, pyarrow.table])
def test_nan_in_other_frames_makes_the_row_bad(frame):
    found, bad = read(frame({"input": ["a", "b"], "output": ["x", "y"], "n": [1.0, float("nan")]}))
    assert [e.input for e in found] == ["a"]
    assert bad == [(2, "field 'n': NaN is not a finite number")]


def test_two_columns_of_one_name_are_refused():
    frame = pandas.DataFrame([[1, 2]], columns=["input", "input"])
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["input", "input"])
    for data in (frame, table):
        with pytest.raises(InvalidInput, match="two columns named 'input'"):
            read(data)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (("a", ["b"]), ["a", ["b"]]),
        (datetime(2024, 1, 2, 3, 4, 5), "2024-01-02T03:04:05"),
        (date(2024, 1, 2), "2024-01-02"),
    ],
)
def test_foreign_values_become_plain_json(value, plain):
    [found], _ = read([{"input": value, "output": "x"}])
    assert found.input == plain
    assert type(found.input) is type(plain)


class Strange:
    pass


def cyclic():
    value: list = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"x", "type bytes"),
        ({"x"}, "type set"),
        (Strange(), "type Strange"),
        (np.datetime64("2024-01-02T00:00:00", "ns"), "type datetime64"),
        (pandas.NaT, "type NaTType"),
        (np.float32("inf"), "not a finite number"),
        (float("nan"), "NaN is not a finite number"),
        (10**5000, "too many digits"),
        ({1: "x"}, "key '1' is an integer"),
        (cyclic(), "nested too deep"),
        ("\ud800", "lone surrogate"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else "value",
)
def test_a_value_that_is_no_json_makes_the_row_bad(value, reason):
    assert reason in rejected({"input": "x", "output": "y", "extra": value})
    assert reason in rejected(Example("a", "x", "y", meta={"extra": value}))


def test_a_row_that_is_no_mapping_is_bad():
    assert "expected an object" in rejected(["x"])
    assert "expected an object" in rejected(None)
    assert rejected("plain text") == "a text, expected an object"


def test_the_sum_of_the_fields_is_capped_too():
    assert "at most 10" in rejected({"input": "123456", "output": "123456"}, limits=Limits(row_bytes=10))


# --- queries


def test_queries_need_no_output_and_may_be_plain_texts():
    found, bad = read(
        ["where is it?", {"input": "and that?"}, {"input": "so?", "output": "yes"}, {"x": 1}], read_queries
    )
    assert [(e.input, e.output) for e in found] == [("where is it?", None), ("and that?", None), ("so?", "yes")]
    assert bad == [(4, "missing field 'input'; the row has 'x'")]
    assert found[0].id == as_query("where is it?").id


def test_queries_are_read_with_the_fields_of_the_pool():
    fields = Fields(input="text", output="intent")
    [found], _ = read([{"text": "x"}], read_queries, fields=fields)
    assert (found.input, found.output) == ("x", None)
    assert "missing field 'intent'" in rejected({"text": "x"}, fields=fields)


def test_a_text_in_a_jsonl_file_is_no_query(tmp_path):
    assert read(write(tmp_path, '"x"\n', "q.jsonl"), read_queries) == ([], [(1, "a text, expected an object")])


def test_a_column_of_texts_can_be_queries():
    for column in (pandas.Series(["a", "b"]), polars.Series(["a", "b"]), pyarrow.array(["a", "b"])):
        assert [e.input for e in read(column, read_queries)[0]] == ["a", "b"]


# --- fields


def mapped(row, **fields):
    [found], bad = read([row], fields=Fields(**fields))
    assert bad == []
    return found


def test_a_field_name_a_dotted_path_and_a_template_find_their_values():
    row = {"q": {"title": "Card", "text": "Where?"}, "a": "wait", "n": 3}
    found = mapped(row, input="$q.title: $q.text ($n) $$5", output="a", label="q.title")
    assert (found.input, found.output, found.label) == ("Card: Where? (3) $5", "wait", "Card")
    assert found.meta == {"q": {"title": "Card", "text": "Where?"}, "n": 3}  # "a" was used as a whole


def test_an_exact_key_wins_over_a_dotted_path():
    found = mapped({"data.text": "exact", "data": {"text": "path"}, "output": "x"}, input="data.text")
    assert (found.input, found.meta) == ("exact", {"data": {"text": "path"}})


def test_braces_name_a_field_with_any_characters_and_end_a_path():
    found = mapped({"first name": "Ada", "a": "A", "output": "x"}, input="${first name} ${a}.b $a.")
    assert found.input == "Ada A.b A."


def test_a_template_renders_values_and_never_reads_them_as_a_template():
    found = mapped({"t": "$u ${u} {t} %s", "u": [1, "é"], "output": "x"}, input="$t|$u")
    assert found.input == '$u ${u} {t} %s|[1, "é"]'


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_inserted_verbatim(title, text):
    assert mapped({"a": title, "b": text, "output": "x"}, input="<$a>$b").input == f"<{title}>{text}"


@pytest.mark.parametrize("template", ["$", "cost: $ 5", "$1", "a $", "${}", "$$ only"])
def test_a_malformed_template_is_refused(template):
    with pytest.raises(TemplateError):
        Fields(input=template)


def test_an_empty_input_field_and_a_template_for_meta_are_refused():
    with pytest.raises(InvalidInput):
        Fields(input="")
    with pytest.raises(InvalidInput, match="meta"):
        Fields(meta="$a")


@pytest.mark.parametrize("attribute", ["rationale", "label", "id", "task", "meta"])
def test_a_chosen_field_must_be_there_and_a_default_one_need_not(attribute):
    row = {"input": "x", "output": "y"}
    assert "missing field 'mine'" in rejected(row, fields=Fields(**{attribute: "mine"}))
    assert "missing field 'a.b'" in rejected({**row, "a": 1}, fields=Fields(**{attribute: "a.b"}))
    assert len(read([row])[0]) == 1


def test_a_chosen_field_may_be_null_unless_it_is_the_id():
    row = {"input": "x", "output": "y", "mine": None}
    assert mapped(row, rationale="mine").rationale is None
    assert "missing field 'mine'" in rejected(row, fields=Fields(id="mine"))
    assert "missing field 'mine'" in rejected(row, fields=Fields(rationale="$mine!"))


def test_without_a_field_for_the_output_there_is_none():
    for nothing in (None, ""):
        found = mapped({"input": "x", "output": "y"}, output=nothing)
        assert (found.output, found.meta) == (None, {"output": "y"})


def test_a_template_that_grows_over_the_size_cap_makes_the_row_bad():
    reason = rejected(
        {"a": "12345", "output": "x"}, fields=Fields(input="$a$a"), limits=Limits(field_bytes=8, row_bytes=100)
    )
    assert reason == "input from '$a$a': 10 bytes, at most 8 are allowed"


# --- attributes


def test_what_no_attribute_takes_goes_into_meta_unless_it_is_null():
    row = {"input": "x", "output": "y", "meta": {"a": 1, "n": None}, "b": [1], "c": None, "a": 1}
    assert mapped(row).meta == {"a": 1, "b": [1]}


@pytest.mark.parametrize("value", [2, True, 1.0, "1", [1]])
def test_a_field_that_contradicts_meta_makes_the_row_bad(value):
    assert "'a' stands beside meta" in rejected({"input": "x", "output": "y", "meta": {"a": 1}, "a": value})


def test_meta_may_be_the_json_text_of_an_object_and_nothing_else(tmp_path):
    assert mapped({"input": "x", "output": "y", "meta": '{"a": [1]}'}).meta == {"a": [1]}
    for meta in ("hello", "[1]", "7", '{"a":1,"a":1}', [1], 3, True):
        assert "meta is" in rejected({"input": "x", "output": "y", "meta": meta})
    assert "NaN" in rejected({"input": "x", "output": "y", "meta": '{"a": NaN}'})
    assert mapped({"input": "x", "output": "y", "meta": "hello"}, meta=None).meta == {"meta": "hello"}


def test_rationale_and_task_are_text_and_numbers_are_rendered():
    found = mapped({"input": "x", "output": "y", "rationale": 1.5, "task": 7})
    assert (found.rationale, found.task) == ("1.5", "7")
    for bad in ([1], {}, True):
        assert "rationale is" in rejected({"input": "x", "output": "y", "rationale": bad})
        assert "task is" in rejected({"input": "x", "output": "y", "task": bad})


@pytest.mark.parametrize("label", ["a", 1, 1.5, False, [], ["a", 2, True]])
def test_labels_are_scalars_or_lists_of_them(label):
    assert mapped({"input": "x", "output": "y", "label": label}).label == label


@pytest.mark.parametrize("label", [{"a": 1}, [["a"]], [{}], ["a", None]])
def test_other_labels_make_the_row_bad(label):
    assert "label holds" in rejected({"input": "x", "output": "y", "label": label})


# --- ids


def test_an_id_is_a_text_or_an_integer():
    assert mapped({"id": 7, "input": "x", "output": "y"}).id == "7"
    for bad in (1.5, True, [1], ""):
        assert "expected a text or an integer" in rejected({"id": bad, "input": "x", "output": "y"})


def test_a_missing_id_is_derived_from_the_content():
    found = mapped({"output": "y", "input": "x", "lang": "en", "id": None})
    assert found.id == as_query({"input": "x", "output": "y", "lang": "en"}).id


def test_a_second_row_with_the_same_id_or_content_is_bad():
    rows = [
        {"id": "x", "input": 1, "output": 1},
        {"input": 2, "output": 2},
        {"id": "x", "input": 3, "output": 3},
        {"output": 2, "input": 2},
        {"input": 2, "output": 3},
    ]
    found, bad = read(rows)
    assert [(e.input, e.output) for e in found] == [(1, 1), (2, 2), (2, 3)]
    assert bad == [(3, "duplicate id 'x', first at line 1"), (4, "same content as line 2")]


# --- nothing is lost

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ROWS_OF_ANYTHING = st.lists(
    st.dictionaries(st.sampled_from(["id", "input", "output", "label", "rationale", "task", "meta", "a"]), JSON) | JSON,
    max_size=6,
)


@given(ROWS_OF_ANYTHING)
def test_every_row_in_memory_becomes_an_example_or_a_bad_row(rows):
    found, bad = read(rows)
    assert len(found) + len(bad) == len(rows)
    assert len({e.id for e in found}) == len(found)


@given(st.lists(st.binary(max_size=12) | JSON.map(lambda v: json.dumps(v).encode()), max_size=6))
def test_every_line_becomes_an_example_a_bad_row_or_is_blank(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("any") / "p.jsonl"
    path.write_bytes(b"\n".join(lines))
    found, bad = read(path, fields=Fields(output=None))
    physical = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert len(found) + len(bad) == sum(bool(line.strip()) for line in physical)


EXAMPLE = st.builds(
    Example,
    id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5),
    input=JSON.filter(lambda v: v is not None),
    output=JSON.filter(lambda v: v not in (None, {})),
    rationale=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    label=st.none() | st.integers() | st.lists(st.sampled_from("ab"), max_size=2),
    meta=st.dictionaries(st.sampled_from(["lang", "k é"]), JSON.filter(lambda v: v is not None), max_size=2),
).filter(lambda e: e.input != {})  # an empty object does not survive Example.to_dict


@given(st.lists(EXAMPLE, max_size=4, unique_by=lambda e: e.id))
def test_examples_written_as_jsonl_are_read_as_they_were(tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("round") / "p.jsonl"
    write_jsonl(path, [e.to_dict() for e in examples])
    assert read(path) == (examples, [])
    assert read(examples) == (examples, [])


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5, unique_by=lambda row: row))
def test_texts_written_as_csv_are_read_as_they_were(tmp_path_factory, rows):
    rows = [{"input": f"{i}.", "output": f".{o}"} for i, o in rows]
    path = tmp_path_factory.mktemp("round") / "p.csv"
    write_csv(path, rows or [{"input": "x", "output": "y"}])
    found, bad = read(path)
    assert [{"input": e.input, "output": e.output} for e in found] == (rows or [{"input": "x", "output": "y"}])
    assert bad == []


# --- bad rows


def test_a_bad_row_reads_as_source_line_reason():
    assert str(BadRow("tickets.jsonl", 17, "not JSON")) == "tickets.jsonl:17: not JSON"


def test_the_source_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "{\n", "p.jsonl")
    log = BadRowLog()
    assert list(read_examples("p.jsonl", on_bad=log)) == []
    assert str(log.rows[0]).startswith("p.jsonl:1: ")


def test_a_log_counts_all_bad_rows_and_keeps_the_first():
    log = BadRowLog(keep=2)
    assert list(read_examples([{}, {}, {}], on_bad=log)) == []
    assert (log.count, [row.line for row in log.rows]) == (3, [1, 2])
    with pytest.raises(
        BadRows, match="3 bad rows, first list:1: missing field 'input'; the row has no fields"
    ) as caught:
        log.raise_if_any()
    assert (caught.value.exit_code, caught.value.rows) == (7, tuple(log.rows))


def test_an_empty_log_raises_nothing():
    BadRowLog().raise_if_any()
    with pytest.raises(InvalidInput):
        BadRowLog(keep=0)


def test_untrusted_text_in_a_reason_is_escaped_and_short():
    reason = rejected({"\x1b[31m" + "x" * 500: 1})
    assert "\x1b" not in reason
    assert len(reason) < 200


def test_limits_are_positive():
    with pytest.raises(InvalidInput, match="nesting is 0"):
        Limits(nesting=0)


def test_importing_the_module_imports_no_optional_package():
    code = "import sys, retriever.formats; print({'pyarrow', 'pandas', 'polars', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- writing


def written(records, format):
    file = io.BytesIO()
    with open_writer(file, format) as writer:
        for record in records:
            writer.write(record)
    assert not file.closed
    return file.getvalue()


def test_json_lines_are_compact_utf8_and_keep_every_character():
    content = written([{"b": "é\u2028\x00", "a": [1, None, {"c": 0.5}]}, {}], "jsonl")
    assert content == '{"b":"é\u2028\\u0000","a":[1,null,{"c":0.5}]}\n{}\n'.encode()


@pytest.mark.parametrize("value", [float("nan"), "\ud800", {1, 2}, [float("inf")]], ids=repr)
def test_json_lines_refuse_what_they_cannot_hold_and_write_nothing_of_it(value):
    file = io.BytesIO()
    with pytest.raises(InvalidInput), open_writer(file, "jsonl") as writer:
        writer.write({"a": 1})
        writer.write({"a": value})
    assert file.getvalue() == b'{"a":1}\n'


def test_parquet_columns_take_their_types_from_the_first_thousand_records():
    records = [
        {"text": "x", "whole": 1, "part": 1, "flag": True, "list": ["a"], "mixed": 1, "empty": None, "big": 2**70},
        {"text": None, "whole": 2, "part": 0.5, "flag": None, "list": [], "mixed": "x", "empty": None, "big": 1},
    ]
    table = parquet.read_table(io.BytesIO(written(records, "parquet")))
    assert [str(kind) for kind in table.schema.types] == [
        "string", "int64", "double", "bool", "string", "string", "string", "string",
    ]  # fmt: skip
    assert table.to_pylist() == [
        {**records[0], "list": '["a"]', "mixed": "1", "big": str(2**70)},
        {**records[1], "list": "[]", "big": "1"},
    ]


def test_parquet_is_written_in_row_groups_of_a_thousand_and_is_the_same_every_time():
    records = [{"a": n, "b": None if n < 1000 else {"n": n}} for n in range(2001)]
    content = written(records, "parquet")
    file = parquet.ParquetFile(io.BytesIO(content))
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [1000, 1000, 1]
    assert file.read().to_pylist()[2000] == {"a": 2000, "b": '{"n": 2000}'}
    assert written(records, "parquet") == content


def test_parquet_refuses_another_key_or_a_value_that_does_not_fit():
    with pytest.raises(InvalidInput, match="the field 'c'"):
        written([{"a": 1, "b": 1}, {"a": 1, "c": 1}], "parquet")
    with pytest.raises(InvalidInput, match="column a"):
        written([{"a": 1}] * 1000 + [{"a": "x"}], "parquet")
    with pytest.raises(InvalidInput, match="column a"):
        written([{"a": 1}] * 1000 + [{"a": 2**70}], "parquet")


def test_a_missing_key_is_a_null_in_parquet():
    assert parquet.read_table(io.BytesIO(written([{"a": 1, "b": 2}, {"a": 3}], "parquet"))).to_pylist()[1]["b"] is None


def test_no_records_make_an_empty_file_of_each_format(tmp_path):
    assert written([], "jsonl") == written([], "csv") == b""
    (tmp_path / "p.parquet").write_bytes(written([], "parquet"))
    assert read(tmp_path / "p.parquet") == ([], [])


def test_csv_quotes_all_but_numbers_and_writes_what_is_no_text_as_json():
    records = [
        {"text": 'say "a,b"', "whole": -1, "part": -0.5, "flag": True, "list": ["é", None], "empty": None},
        {"text": "two\nlines\rand", "whole": 2**70, "part": 1e300, "list": {}},
    ]
    assert written(records, "csv").decode() == (
        '"text","whole","part","flag","list","empty"\n'
        '"say ""a,b""",-1,-0.5,"true","[""é"", null]",""\n'
        '"two\nlines\rand",1180591620717411303424,1e+300,"","{}",""\n'
    )
    assert written([{"a": "x", "b": -1}], "tsv") == b'"a"\t"b"\n"x"\t-1\n'


FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    "＋1",
    "－1",
    "＠A1",
    '=HYPERLINK("x","y")',
    "-",
]


@pytest.mark.parametrize("format", ["csv", "tsv"])
@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
def test_a_text_that_a_spreadsheet_would_take_for_a_formula_gets_an_apostrophe(format, text):
    content = written([{text: text}], format).decode()
    assert list(csv.reader(io.StringIO(content, newline=""), delimiter="," if format == "csv" else "\t")) == [
        ["'" + text],
        ["'" + text],
    ]


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=2), min_size=1, max_size=5))
def test_csv_gives_back_every_text_but_for_the_apostrophe(rows):
    content = written([{"a": a, "b": b} for a, b in rows], "csv").decode()
    read_back = list(csv.reader(io.StringIO(content, newline="")))
    dangerous = tuple("=+-@\t\r\n＝＋－＠")
    assert read_back == [["a", "b"], *([f"'{t}" if t.startswith(dangerous) else t for t in row] for row in rows)]
    assert not any(cell.startswith(dangerous) for row in read_back for cell in row)


def test_csv_is_read_back_as_the_same_rows(tmp_path):
    (tmp_path / "o.csv").write_bytes(written([{"id": "1", "input": 'a\r\n"b', "output": "1"}], "csv"))
    examples, bad = read(tmp_path / "o.csv")
    assert bad == []
    assert [(one.id, one.input, one.output) for one in examples] == [("1", 'a\r\n"b', "1")]


@pytest.mark.parametrize("value", [float("nan"), "\ud800", {1, 2}, [float("inf")]], ids=repr)
def test_csv_refuses_what_json_cannot_hold_and_writes_nothing_of_it(value):
    file = io.BytesIO()
    with pytest.raises(InvalidInput), open_writer(file, "csv") as writer:
        writer.write({"a": 1})
        writer.write({"a": value})
    assert file.getvalue() == b'"a"\n1\n'


def test_csv_refuses_another_key_and_leaves_a_missing_one_empty():
    with pytest.raises(InvalidInput, match="the field 'c'"):
        written([{"a": 1, "b": 1}, {"a": 1, "c": 1}], "csv")
    assert written([{"a": 1, "b": 1}, {"a": 2}], "csv") == b'"a","b"\n1,1\n2,""\n'


def test_the_format_to_write_follows_from_the_suffix():
    names = ("a.jsonl", "B.PARQUET", "-", "a.csv", "a.TSV")
    assert [writer_format(path) for path in names] == ["jsonl", "parquet", "jsonl", "csv", "tsv"]
    for path in ("a.txt", "a", "a.json", "a.csv.gz"):
        with pytest.raises(InvalidInput, match=r"\.jsonl, \.parquet, \.csv or \.tsv"):
            writer_format(path)
    with pytest.raises(InvalidInput):
        open_writer(io.BytesIO(), "xml")
