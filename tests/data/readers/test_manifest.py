import codecs
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vdvae_repr.data.open import open_source
from vdvae_repr.errors import DataError


@pytest.fixture
def table(tmp_path):
    for name in "abcd":
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{name}.png")

    def write(content, name="m.csv"):
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
        return open_source(tmp_path / name)

    return write


def labels(source):
    return [None if k < 0 else source.label_names[k] for k in source.labels]


PLAIN = "file,label,split\na.png,cat,train\nb.png,dog,test\n"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (PLAIN, "UP.CSV"),
        (PLAIN.replace("\n", "\r\n"), "m.csv"),
        (PLAIN.replace("\n", "\r"), "m.csv"),
        (codecs.BOM_UTF8 + PLAIN.encode(), "m.csv"),
        (PLAIN.encode("utf-16"), "m.csv"),
        (PLAIN.replace(",", ";"), "m.csv"),
        (PLAIN.replace(",", "\t"), "m.csv"),
        (PLAIN.replace(",", "\t"), "m.tsv"),
        (PLAIN.replace(",", " , "), "m.csv"),
        (PLAIN.replace("cat", '"cat "'), "m.csv"),
        (PLAIN.replace("train", "Training").replace("test", "TEST"), "m.csv"),
        (PLAIN.replace("file,label,split", "File,Label,Split"), "m.csv"),
        (PLAIN.replace("\n", ",\n"), "m.csv"),
        ("\n".join(f",{line}" for line in PLAIN.split()), "m.csv"),
        (PLAIN + "\n,,\n", "m.csv"),
        ("\n \t\n" + PLAIN, "m.csv"),
        (
            "\t\n" + "\n".join(f"\t{line}" for line in PLAIN.replace(",", "\t").splitlines()),
            "m.csv",
        ),
        ("sep=,\n" + PLAIN, "m.csv"),
        ("\nsep=,\n" + PLAIN, "m.csv"),
        ("sep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n"), "m.csv"),
        (codecs.BOM_UTF8 + b"SEP=\t\n" + PLAIN.replace(",", "\t").encode(), "m.csv"),
    ],
)
def test_tables_as_people_write_them(table, content, name):
    source = table(content, name)
    assert source.ids == ("a.png", "b.png")
    assert labels(source) == ["cat", "dog"]
    assert source.splits == ("train", "test")
    assert source.factors == {}


def test_splits_under_another_name_are_splits(table):
    source = table("file,label,subset,note\na.png,cat,Train,x\nb.png,dog,test,y\nc.png,dog,,z\n")
    assert source.splits == ("train", "test", "")
    assert source.notices == (
        "splits are read from column 'subset'",
        "1 image belongs to no split",
    )
    assert table("file,label,x,y\na.png,cat,train,test\nb.png,dog,test,train\n").splits == ("", "")


@pytest.mark.parametrize("words", [("TRAIN", "holdout"), ("train", "train")])
def test_words_of_splits_in_a_column_that_is_none_are_said(table, words):
    first, second = words
    source = table(f"file,label,partition\na.png,cat,{first}\nb.png,dog,{second}\n")
    assert source.splits == ("", "")
    assert source.factors["partition"].tolist() == [first, second]
    (line,) = source.notices
    assert line.startswith(f"no splits are read from column 'partition', which holds {first}: ")
    named = table(f"file,label,split,partition\na.png,cat,test,{first}\nb.png,dog,val,{second}\n")
    assert (named.splits, named.notices) == (("test", "val"), ())


@pytest.mark.parametrize(
    "column",
    [
        "is_train",
        "istest",
        "Test",
        "partition",
        "train_test",
        "TrainTest",
        "holdout",
        "held_out",
    ],
)
@pytest.mark.parametrize("codes", [("1", "0"), ("True", "False")])
def test_a_column_called_like_splits_that_holds_codes_is_said(table, column, codes):
    first, second = codes
    source = table(f"file,label,{column}\na.png,cat,{first}\nb.png,dog,{second}\n")
    assert source.factors[column].tolist() == [first, second]
    (line,) = source.notices
    assert line.startswith(f"no splits are read from column '{column}', which holds '{first}'")
    told = table(f"file,label,split,{column}\na.png,cat,train,{first}\nb.png,dog,test,{second}\n")
    assert told.notices == ()


def test_a_column_of_words_that_others_call_their_splits_is_said(table):
    (line,) = table("file,label,part\na.png,cat,gallery\nb.png,dog,Probe\n").notices
    assert line.startswith("no splits are read from column 'part', which holds 'gallery', 'Probe':")
    for column in ("set", "Part", "dataset", "group"):
        (line,) = table(f"file,label,{column}\na.png,cat,tr\nb.png,dog,te\n").notices
        assert line.startswith(
            f"no splits are read from column '{column}', which holds 'tr', 'te':"
        )
    for column, one, other in (
        ("part", "eye", "probe"),
        ("group", "patient", "control"),
        ("condition", "seen", "unseen"),
        ("language", "tr", "te"),
        ("eval", "3", "2"),
    ):
        content = f"file,label,{column}\na.png,cat,{one}\nb.png,dog,{other}\n"
        assert table(content).notices == ()


@pytest.mark.parametrize(
    "text",
    [
        "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NUM!", "#NULL!", "#N/A", "#NV", "#WERT!", "#BEZUG!",
        "#N/D", "#\u00a1VALOR!", "#NOM?", "#SPILL!", "Err:502", "#####", "\\N", "(null)",
    ],
)  # fmt: skip
def test_errors_of_spreadsheets_stand_for_none(table, text):
    source = table(f"file,label,age\na.png,cat,3\nb.png,{text},{text}\n")
    assert labels(source) == ["cat", None]
    assert source.factors["age"].tolist() == ["3", "nan"]
    assert source.notices[0] == f"labels that stand for none: {text!r} (1)"


@pytest.mark.parametrize("text", ["#N/A", "-nan", "1.#IND", "#NA"])
def test_what_pandas_reads_as_none_is_none(table, tmp_path, text):
    content = f"file,label,age\na.png,cat,3\nb.png,{text},{text}\n"
    source = table(content)
    frame = pd.read_csv(io.StringIO(content))
    assert frame.label.isna().tolist() == frame.age.isna().tolist() == [False, True]
    assert labels(source) == ["cat", None]
    assert source.factors["age"].tolist() == ["3", "nan"]


def test_a_minus_that_is_no_hyphen_is_said(table):
    (line,) = table("file,label,t\na.png,cat,\u22123\nb.png,dog,\u22124\n").notices
    assert (
        line == "factor 't': '\u22123' is no number as it is written, so it is read as categories"
    )


@pytest.mark.parametrize(
    "number",
    ["1\u00a0000", "1\u202f000", "$1.50", "-$3", "\u20ac 2", "(1.5)", "5.07D+01", "-.5d-003"],
)
def test_numbers_as_spreadsheets_write_them_are_said(table, number):
    other = re.sub(r"\d", "4", number, count=1)
    (line,) = table(f"file,label,t\na.png,cat,{number}\nb.png,dog,{other}\n").notices
    assert (
        line == f"factor 't': {number!r} is no number as it is written, so it is read as categories"
    )


def test_labels_that_stand_for_none(table):
    source = table("file,label\na.png,cat\nb.png,nan\nc.png,NA\nd.png,\n")
    assert labels(source) == ["cat", None, None, None]
    assert source.notices == (
        "labels that stand for none: 'nan' (1), 'NA' (1)",
        "3 images have no label, as b.png",
    )
    empty = table("file,label\na.png,\nb.png,\n")
    assert empty.notices == ("column 'label' is empty, so that images have no labels",)


@pytest.mark.parametrize(
    ("content", "notice"),
    [
        ("file,Label\na.png,cat\n", "labels are read from column 'Label'"),
        (
            "file,class\na.png,cat\n",
            "no column 'label', so that images have no labels; found file, class",
        ),
        (",file,label\n0,a.png,cat\n", "1 column without a name left out"),
        ("file;label\na.png;cat\n", "read as separated by semicolons"),
        ("file,label,split\na.png,cat,fold1\n", "no split is called 'fold1' (1 image)"),
        (
            'file,label,note\na.png,cat,"5\nb.png,dog,3"\n',
            "lines 2 to 3 are one row, for quotation marks in column 'note' around several",
        ),
    ],
)
def test_what_is_read_otherwise_is_said(table, content, notice):
    (line,) = table(content).notices
    assert notice in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "label,file\ncat,a.png\ndog\n",
            "line 3: expected 2 values, as in the header, found 1: 'dog'",
        ),
        ("file,label\na.png,cat,x\n", "line 2: expected 2 values, as in the header, found 3"),
        ("file,label,note\na.png,cat," + "x" * 140_000, "line 2: cannot be read as a table"),
        (
            'file,label\n"a.png,cat\nb.png,dog\n',
            "line 2: cannot be read as a table .*quotation mark",
        ),
        (
            'file,label\na.png,"tool 5\nb.png,dog\nc.png,tool 3"\nd.png,dog\n',
            "lines 2 to 4: expected a row on each line, found quotation marks in column 'label'",
        ),
        ('file,label,"a\nb"\na.png,cat,1\n', "line 1: expected the names of columns on one line"),
        ('file,label\n"a.png\n",cat\nz.png,dog\n', "line 4: no such file"),
        ("file,label,.\na.png,cat,1\n", r"line 1: no store can keep a column called '\.'"),
        ("file,label,h/w\na.png,cat,1\n", "line 1: no store can keep a column called 'h/w'"),
        (
            "file,label,label\na.png,cat,x\n",
            "expected one column 'label', found 'label' and 'label'",
        ),
        (
            "file,label,Label\na.png,cat,x\n",
            "expected one column 'label', found 'label' and 'Label'",
        ),
        ("file,age,age\na.png,1,2\n", "line 1: column 'age' occurs twice"),
        ("file,label\n,cat\n", "line 2: expected a file, found nothing"),
        ("path|label\na.png|cat\n", r"expected a column 'file', found path\|label"),
        ("", "expected a column 'file', found none"),
        (b"file,label\na.png,caf\xe9\n", "line 2: expected UTF-8, found a byte 0xe9"),
        (b"file,label\na.png,\0\n", "found binary data"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_number(table, content, message):
    with pytest.raises(DataError, match=message) as caught:
        table(content)
    assert "\n" not in str(caught.value)


def test_a_whole_number_is_one_class_however_it_is_written(table):
    source = table("file,label\na.png,1\nb.png,1.0\nc.png, 1\nd.png,01\n")
    assert labels(source) == ["1", "1", "1", "01"]
    assert any("'1' and '1.0' are one class" in line for line in source.notices)
    with pytest.raises(DataError, match=r"m.csv column 'label': .*fractions, as '0.25'"):
        table("file,label\na.png,0.25\nb.png,1\n")


def test_one_file_under_two_names_is_refused(table):
    with pytest.raises(DataError, match=r"line 3: file './a.png' occurs twice"):
        table("file,split\na.png,train\n./a.png,test\n")


def test_labels_and_splits_that_folders_would_tell_are_said_to_be_lost(table, tmp_path):
    """Of the same files opened as a folder they are read."""
    rows = [
        f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "ab" for i in "01"
    ]
    for number, row in enumerate(rows):
        (tmp_path / row).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 99 + number).save(tmp_path / row)
    first, second = table("\n".join(["file", *rows])).notices
    assert first == "no column 'label', so that images have no labels; found file"
    assert second.startswith(
        "no splits are read from the folders of files, as train of train/a/0.png: give a column"
    )
    both = [f"{row},{row[-7]},{row.split('/')[0]}" for row in rows]
    assert table("\n".join(["file,label,split", *both])).notices == ()


def test_two_words_of_one_split_are_said(table):
    source = table("file,split\na.png,dev\nb.png,val\nc.png,train\n")
    assert source.splits == ("val", "val", "train")
    assert source.notices[1:] == ("'dev' and 'val' are one split, val",)


def test_numbers_of_other_columns(table):
    """A whole number is one category, and none among numbers is no category: the task says which image."""
    source = table("file,a,b,c\na.png,1,0.5,x\nb.png,1.0,,\nc.png,2,1.0,1.0\n")
    assert {name: values.tolist() for name, values in source.factors.items()} == {
        "a": ["1", "1", "2"],
        "b": ["0.5", "nan", "1.0"],
        "c": ["x", "", "1.0"],
    }
    assert "the column of splits is empty" in table("file,label,split\na.png,cat,\n").notices[0]


@pytest.mark.parametrize(
    ("content", "values", "notice"),
    [
        ("file;x\na.png;20,5\nb.png;3\n", ["20.5", "3"], "'20,5' is read as 20.5"),
        ("file\tx\na.png\t1,5\nb.png\t-2,25\n", ["1.5", "-2.25"], "'1,5' is read as 1.5"),
        (
            "file,x\na.png,1.5\nb.png,unknown\nc.png,2\n",
            ["1.5", "unknown", "2"],
            "factor 'x': 1 of 3 values is no number, as 'unknown', so it is read as categories",
        ),
        ('file,x\na.png,"20,5"\nb.png,"1,000"\n', ["20,5", "1,000"], "'20,5' is no number as it"),
        ("file,x\na.png,red\nb.png,\n", ["red", ""], "factor 'x': '' (1) stands for none"),
    ],
)
def test_how_a_factor_is_read_is_said(table, content, values, notice):
    source = table(content)
    assert source.factors["x"].tolist() == values
    assert notice in source.notices[-1]


def test_one_file_in_two_rows_is_refused_or_said(table, tmp_path, monkeypatch):
    table("file,x\na.png,1\nb.png,2\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.csv").write_text(f"file\na.png\n{tmp_path / 'a.png'}\n")
    with pytest.raises(DataError, match=r"m.csv line 3: file .* occurs twice"):
        open_source("m.csv")
    (tmp_path / "link.png").symlink_to("a.png")
    (line,) = table("file,label\na.png,cat\nlink.png,cat\n").notices
    assert "1 row is the file of another row, by links, as a.png and link.png" in line


def test_lines_are_counted_below_what_stands_above_the_header(table):
    with pytest.raises(DataError, match=r"m.csv line 5: no such file"):
        table("\n \nsep=;\nfile;label\nnone.png;cat\n")
