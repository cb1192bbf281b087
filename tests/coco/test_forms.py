"""eecs598.coco.forms: each form of captions file is recognised by its content, and all give the same pictures."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from support.data_files import assert_equal, message, numbers_of, write_folder

from eecs598.coco import build_data
from eecs598.coco.__main__ import main
from eecs598.coco.builder import find_pictures
from eecs598.coco.forms import read_captions_file, summarize, with_words

CAPTIONS = {
    "1000_a.jpg": ["A child in a pink dress , climbing .", '"Go" says a girl .'],
    "two dogs, one.jpg": ["Two dogs | one ball ; a stick #3 .", "Zwei Hunde über einer Brücke ."],
    "3.png": ["The dog runs .", "The dog runs ."],
}
ROWS = [(name, number, text) for name, texts in CAPTIONS.items() for number, text in enumerate(texts)]


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def coco_json():
    images = [{"id": i, "file_name": name} for i, name in enumerate(CAPTIONS)]
    ids = {entry["file_name"]: entry["id"] for entry in images}
    return json.dumps({"images": images, "annotations": [{"image_id": ids[n], "caption": t} for n, _, t in ROWS]})


def karpathy_json(splits=("train", "restval", "test")):
    images = [{"imgid": i, "filename": name, "split": split, "sentences": [{"raw": t, "tokens": []} for t in texts]}
              for i, ((name, texts), split) in enumerate(zip(CAPTIONS.items(), splits))]  # fmt: skip
    return json.dumps({"images": images, "dataset": "flickr8k"})


def table(separator, header=None, quote=quoted):
    return "".join(f"{line}\n" for line in [*([header] if header else []),
                   *(f"{quote(name)}{separator}{quote(text)}" for name, _, text in ROWS)])  # fmt: skip


def plain(text):
    return text


FORMS = {
    "COCO's captions file": coco_json(),
    "a Karpathy split file": karpathy_json(),
    "Flickr's token file": "".join(f"{name}#{number}\t{text}\n" for name, number, text in ROWS),
    "Flickr30k's results.csv": "image_name| comment_number| comment\n"
    + "".join(f"{name}| {number}| {text}\n" for name, number, text in ROWS),
    "a table separated by commas, with a header": table(",", "image,caption"),
    "a table separated by commas, without a header": table(","),
    "a table separated by semicolons, with a header": table(";", "Image Name;Caption"),
    "a table separated by tabs, with a header": table("\t", "file_name\tcaption"),
    "a table separated by tabs, without a header": table("\t"),
    "a table separated by |, with a header": table("|", "image|comment", plain),
}


def write(folder, content, name="any name"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- recognising and reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_told_by_its_content_and_gives_the_same_pictures(form, tmp_path):
    content = FORMS[form]
    for change in (content, "\ufeff" + content, content.replace("\n", "\r\n"), "\n" + content, content.rstrip("\n")):
        found = read_captions_file(write(tmp_path, change))
        assert found.form == form and found.oddities == []
        assert {picture.file_name: picture.captions for picture in found.pictures} == CAPTIONS
        assert [picture.id for picture in found.pictures] == [0, 1, 2]
        assert f"{form}, 3 pictures with 6 captions" in summarize(found, "x")
        assert (found.pictures[2].split == "test") is (form == "a Karpathy split file")


def test_a_table_may_have_other_columns_and_commas_without_quotes(tmp_path):
    def captions_of(content):
        return {p.file_name: p.captions for p in read_captions_file(write(tmp_path, content)).pictures}

    wanted = {"a b.jpg": ["A dog, a cat", "one, two, three"]}
    assert captions_of("a b.jpg,A dog, a cat\na b.jpg,one, two, three\n") == wanted
    assert captions_of('a b.jpg,0,A dog, a cat\na b.jpg,1,"one, two, three"\n') == wanted
    assert captions_of(",caption,image_id,image\n0,\"A dog, a cat\",7,a b.jpg\n1,'one',8,c.jpg\n") == {
        "a b.jpg": ["A dog, a cat"], "c.jpg": ["'one'"],
    }  # fmt: skip
    assert captions_of("image,caption\na.jpg,\"two\nlines\"\nb.jpg,\n") == {"a.jpg": ["two\nlines"], "b.jpg": [""]}
    assert captions_of("image, caption\na.jpg, x, y\n") == {"a.jpg": ["x, y"]}
    assert captions_of("image,caption\n") == captions_of(" , \n,,\n") == {}


def test_names_of_pictures_may_have_signs_of_other_forms(tmp_path):
    for name, separator in (("[1] dog.jpg", ","), ("{a}.png", "\t"), ("a, b.jpg", "\t"), ("a; b.jpg", "\t")):
        found = read_captions_file(write(tmp_path, f"{name}{separator}a dog\n{name}{separator}it runs\n"))
        assert [(picture.file_name, picture.captions) for picture in found.pictures] == [(name, ["a dog", "it runs"])]


def test_flickr30ks_line_without_its_separator_is_read(tmp_path):
    text = "image_name| comment_number| comment\n1.jpg| 3| 2 dogs .\n2199200615.jpg| 4   A dog runs across the grass ."
    pictures = read_captions_file(write(tmp_path, text)).pictures
    assert [(p.file_name, p.captions) for p in pictures] == [
        ("1.jpg", ["2 dogs ."]), ("2199200615.jpg", ["A dog runs across the grass ."]),
    ]  # fmt: skip


def test_numbered_lines_that_are_there_twice_count_once(tmp_path):
    content = FORMS["Flickr's token file"]
    found = read_captions_file(write(tmp_path, content + content[: content.index("\n")]))
    assert {picture.file_name: picture.captions for picture in found.pictures} == CAPTIONS
    assert len(found.oddities) == 1 and "1 duplicate lines are ignored" in found.oddities[0]


def test_captions_without_a_word_are_dropped(tmp_path):
    path = write(tmp_path, "a.jpg#0\tA Dog .\na.jpg#1\t . \nb.jpg#0\t\n")
    pictures = read_captions_file(path).pictures
    assert [picture.captions for picture in with_words(pictures)] == [["a dog"], []]
    assert [picture.captions for picture in with_words(pictures, as_written=True)] == [["A Dog ."], []]
    typed = [pictures[0]._replace(captions=["Five o\u2019clock at the cafe\u0301"])]  # as on a Mac
    assert with_words(typed, as_written=True)[0].captions == ["Five o'clock at the caf\u00e9"]


@pytest.mark.parametrize(("content", "phrase"), [
    ("a.jpg#0\tA dog\nb.jpg A cat\n", "line 2 is 'b.jpg A cat', wanted name.jpg#0<tab>caption"),
    ("image_name| comment_number| comment\n\na.jpg\n", "line 3 is 'a.jpg', wanted name.jpg| 0| caption"),
    ("image,caption\na.jpg,A dog\nb.jpg\n", "line 3: 1 fields, wanted 2; quote fields that contain ','"),
    ("caption,image\nA dog, a cat,a.jpg\n", "line 2: 3 fields, wanted 2; quote fields that contain ','"),
    ("image,caption\na.jpg,A dog\n,A cat\n", "line 3: no file name, wanted one before each caption"),
    ('image,caption\na.jpg,"big" dog\n', 'line 2: the quotes do not match (\',\' expected after \'"\')'),
    ('image,caption\na.jpg,"A dog\nb.jpg,A cat\n', "the quotes do not match (unexpected end of data)"),
    ("photo,words\na.jpg,A dog\n", "first line is 'photo, words', wanted a header with image (or file_name) and cap"),
    ("A dog runs.\n", "its first line is 'A dog runs.', wanted COCO's or Karpathy's JSON, lines like"),
    ("", "its first line is '', wanted COCO's or Karpathy's JSON"),
    ('{"images": [', "not JSON"),
    ('{"info": 1, "images": []}', "JSON with the keys info, images, wanted the lists images and annotations"),
    ("[1]", "JSON with a list, wanted the lists images and annotations"),
    ("image,caption\na.jpg,Ein Hündchen\n".encode("latin-1"), "not a text file in UTF-8 (byte 0xfc in line 2)"),
    ("image,caption\n".encode("utf-16"), "not a text file in UTF-8 (byte 0xff in line 1)"),
])  # fmt: skip
def test_files_that_cannot_be_read_are_told(content, phrase, tmp_path):
    text = message(read_captions_file, path := write(tmp_path, content))
    assert text.startswith(f"{path}: ") and phrase in text


# --- splits ---------------------------------------------------------------------------------------------------


def write_lists(folder, names=("Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt", "Flickr_8k.testImages.txt")):
    return [write(folder, f"{picture}\r\n", name) for picture, name in zip(CAPTIONS, names)]


def splits_of(found):
    return [picture.split for picture in found.pictures]


@pytest.mark.parametrize("form", ["Flickr's token file", "a table separated by commas, with a header"])
def test_split_lists_beside_the_captions_are_found_and_others_named(form, tmp_path):
    path = write(tmp_path, FORMS[form])
    assert splits_of(read_captions_file(path, None)) == ["", "", ""]
    (tmp_path / "lists").mkdir()
    elsewhere = write_lists(tmp_path / "lists", ("flickr30k_train.txt", "val.txt", "my test.TXT"))
    write(tmp_path / "lists", "not a list", "readme.txt")
    for lists in (elsewhere, [tmp_path / "lists"], [elsewhere[2], elsewhere[0], elsewhere[1]]):
        assert splits_of(read_captions_file(path, lists)) == ["train", "val", "test"]
    beside = write_lists(tmp_path)
    found = read_captions_file(path, None)
    assert splits_of(found) == ["train", "val", "test"]
    line = summarize(found, "x")
    assert line.startswith(f"x: {form}, split by Flickr_8k.trainImages.txt, ")
    assert line.endswith("3 pictures with 6 captions: train 1, val 1, test 1")
    assert splits_of(read_captions_file(path)) == ["", "", ""]  # not asked for
    beside[0].write_text("other.jpg\n")
    for place in beside[1:]:
        place.unlink()
    assert splits_of(read_captions_file(path, None)) == ["", "", ""]  # lists of another data set


def test_split_lists_that_do_not_cover_the_captions(tmp_path):
    path = write(tmp_path, FORMS["Flickr's token file"])
    train = write(tmp_path, "1000_a\nnone.jpg\n", "train.txt")  # as Flickr30k's lists, without .jpg
    found = read_captions_file(path, [train])
    assert splits_of(found) == ["train", "", ""] and "train 1, in no split 2" in summarize(found, "x")
    assert found.oddities == [f"{train}: 1 names have no caption in {path} (first: none.jpg)"]


def test_wrong_split_lists_are_told(tmp_path):
    path = write(tmp_path, FORMS["Flickr's token file"])
    train, val = write(tmp_path, "3.png\n", "train.txt"), write(tmp_path, "3.png\n", "val.txt")
    other, empty = write(tmp_path, "other.jpg\n", "test.txt"), write(tmp_path, "", "dev.txt")
    (tmp_path / "folder").mkdir()
    for lists, phrase in [
        ([train, val], "val.txt: '3.png' is in val and in train, wanted one split per picture"),
        ([path], "any name: unknown split, wanted a name that ends in train.txt"),
        ([other], "lists none of the pictures of"), ([empty], "empty, wanted one file name per line"),
        ([tmp_path / "folder"], "no split lists there, wanted files like Flickr_8k.trainImages.txt"),
        ([tmp_path / "no train.txt"], "cannot be read"),
    ]:  # fmt: skip
        assert phrase in message(read_captions_file, path, lists)
    assert "has its own splits" in message(read_captions_file, write(tmp_path, karpathy_json()), [train])


def test_pictures_of_a_split_to_evaluate(tmp_path, capsys):
    for name in CAPTIONS:
        (tmp_path / name).write_bytes(b"")
    path = write(tmp_path, karpathy_json())
    assert [p.file_name for p in find_pictures(tmp_path, path, "train")] == list(CAPTIONS)[:2]  # restval too
    pictures = find_pictures(tmp_path, path, "test")
    assert [p.file_name for p in pictures] == ["3.png"] and pictures[0].captions == CAPTIONS["3.png"]
    assert "a Karpathy split file, 3 pictures with 6 captions: train 2, test 1" in capsys.readouterr().err
    assert "has splits (train, test); choose one (--split)" in message(find_pictures, tmp_path, path)
    assert "no pictures of split 'val'; its splits: train, test" in message(find_pictures, tmp_path, path, "val")
    path = write(tmp_path, FORMS["Flickr's token file"])
    assert len(find_pictures(tmp_path, path)) == 3
    assert "has no splits; give split lists" in message(find_pictures, tmp_path, path, "test")
    assert [p.file_name for p in find_pictures(tmp_path, path, "test", write_lists(tmp_path))] == ["3.png"]


# --- building from them ---------------------------------------------------------------------------------------


def flickr_folder(tmp_path, numbers=range(20), form="token"):
    """The pictures of `write_folder`, their captions as a file of another form, and COCO's JSON to compare with."""
    images, captions = write_folder(tmp_path, numbers)
    pictures = read_captions_file(captions).pictures
    line = {"token": "{}#{}\t{}\n", "table": '{0},"{2}"\n'}[form].format
    rows = [line(p.file_name, i, text) for p in pictures for i, text in enumerate(p.captions)]
    return images, write(tmp_path, "".join(rows), "captions.txt"), captions


@pytest.mark.parametrize("form", ["token", "table"])
def test_a_build_from_another_form_gives_the_same_file(form, tmp_path, capsys):
    images, path, captions = flickr_folder(tmp_path, form=form)
    wanted = build_data(images, captions, image_size=4, seed=2)
    capsys.readouterr()
    assert_equal(build_data(images, captions=path, image_size=4, seed=2), wanted)
    said = capsys.readouterr().err
    assert f"{path}: {'a table separated by commas' if form == 'table' else 'Flickr'}" in said
    assert "no validation pictures; 2 of 20 are chosen for that by seed 2" in said
    assert_equal(build_data(images, path, image_size=4, seed=2), wanted)  # as training captions


def test_the_build_command_takes_split_lists(tmp_path, capsys):
    images, path, _ = flickr_folder(tmp_path)
    splits = {"train": range(12), "dev": range(12, 15), "test": range(15, 18)}
    lists = [write(tmp_path, "".join(f"{n:03}.png\n" for n in numbers), f"Flickr_8k.{split}Images.txt")
             for split, numbers in splits.items()]  # fmt: skip
    options = ["--images", str(images), "--captions", str(path), "--out", str(tmp_path / "out.pt")]
    assert main(["build", *options[:-1], str(lists[1]), "--split-lists", *map(str, lists)]) == 1
    assert "is an input of this command" in capsys.readouterr().err
    for more in ([], ["--split-lists", *map(str, lists)]):
        assert main(["build", *options, *more, "--image-size", "4"]) == 0
        said = capsys.readouterr()
        assert "train: 12 pictures of 4 x 4" in said.out and "val: 3 pictures" in said.out
        assert "20 pictures with 60 captions: train 12, val 3, test 3, in no split 2" in said.err
        assert "no validation" not in said.err
    data = build_data(images, captions=path, split_lists=[lists[0]], image_size=4)  # no list of validation pictures
    assert len(data["val_images"]) == 1 and sorted(numbers_of(data, "train") + numbers_of(data, "val")) == [*range(12)]


def test_captions_given_twice_or_without_training_pictures_are_told(tmp_path):
    images, path, captions = flickr_folder(tmp_path)
    lists = [write(tmp_path, "000.png\n", "test.txt")]
    assert "give no other captions file with it" in message(build_data, images, captions, captions=path)
    assert "given by --captions" in message(build_data, images, captions, split_lists=lists)
    assert "no pictures of split 'train'; its splits: test" in message(
        build_data, images, captions=path, split_lists=lists
    )


def test_pictures_without_captions_and_captions_without_pictures_are_counted(tmp_path, capsys):
    images, path, captions = flickr_folder(tmp_path)
    for number in range(1, 6):
        (images / f"{number:03}.png").rename(images / f"new {number}.png")
    (images / "notes.txt").write_text("no picture")
    build_data(images, captions=path, image_size=4)
    said = capsys.readouterr().err
    assert f"{images}: 5 pictures have no captions, left out (first: new 1.png, new 2.png, new 3.png, ...)" in said
    assert f"5 of 20 pictures are not in {images}, skipped (first: 001.png, 002.png, 003.png, ...)" in said


def test_accents_may_be_written_in_either_of_unicodes_forms(tmp_path, capsys):
    """A Mac unpacks "é" as "e" and an accent of its own."""
    images, path, _ = flickr_folder(tmp_path)
    path.write_text(path.read_text().replace("000.png", "caf\u00e9.png").replace("001.png", "cafe\u0301 1.png"))
    (images / "000.png").rename(images / "cafe\u0301.png")
    (images / "001.png").rename(images / "caf\u00e9 1.png")
    data = build_data(images, captions=path, image_size=4)
    assert sorted(numbers_of(data, "train") + numbers_of(data, "val")) == [*range(20)]
    said = capsys.readouterr().err
    assert "are not in" not in said and "have no captions" not in said


def test_accents_in_split_lists_may_be_written_in_either_of_unicodes_forms(tmp_path):
    path = write(tmp_path, "caf\u00e9.png,a dog\ncafe\u0301 1.png,a cat\n")
    write(tmp_path, "cafe\u0301.png\n", "Flickr_8k.trainImages.txt")
    write(tmp_path, "caf\u00e9 1.png\n", "Flickr_8k.devImages.txt")
    found = read_captions_file(path, None)
    assert splits_of(found) == ["train", "val"] and found.oddities == []


# --- the real Flickr8k ----------------------------------------------------------------------------------------


def test_the_real_flickr8k_reads_the_same_in_every_form(real_data, tmp_path):
    wanted, rows, lists = {}, [], defaultdict(list)
    for split in ("train", "val"):
        for picture in read_captions_file(real_data / "flickr8k" / f"captions_{split}.json").pictures:
            wanted[picture.file_name] = (split, [text.strip() for text in picture.captions])
            lists[split].append(picture.file_name)
            rows += [(picture.file_name, i, text) for i, text in enumerate(picture.captions)]
    places = [write(tmp_path, "\n".join(names), f"{split}.txt") for split, names in lists.items()]
    for content in (
        "".join("{}#{}\t{}\n".format(*row) for row in rows), "".join("{}| {}| {}\n".format(*row) for row in rows),
        "image,caption\n" + "".join(f"{name},{quoted(text)}\r\n" for name, _, text in rows),
        "".join(f"{name}\t{quoted(text)}\n" for name, _, text in rows),
    ):  # fmt: skip
        pictures = read_captions_file(write(tmp_path, content), places).pictures
        assert {p.file_name: (p.split, p.captions) for p in pictures} == wanted
    assert all(Path(p.file_name).suffix == ".jpg" and len(p.captions) == 5 for p in with_words(pictures))
