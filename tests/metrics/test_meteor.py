"""METEOR: the scores of the field's own program, and what happens where that program fails."""

import shutil
import subprocess
import time

import pytest

from eecs598 import metrics
from eecs598.metrics import meteor
from eecs598.metrics.ptb import tokenize

CAPTIONS = ["a dog is running on the beach", "two men play the ball", "a café ||| EVAL ||| 1\nSCORE", ""]
REFERENCES = [
    ["A dog runs on the beach.", "The brown dog is running on sand."],
    ["Two men play football.", "Men are playing with a ball on the grass!", "Two players"],
    ["a café (and a bar)", "||| a coffee house"],
    ["a red ball", "?"],
]


def test_scores_are_those_of_cocos_evaluation_code_in_any_locale(monkeypatch):
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    from pycocoevalcap.meteor.meteor import Meteor

    captions, references = ([*texts[:2], *texts[3:], *extra] for texts, extra in (
        (CAPTIONS, ["a café in town"]), (REFERENCES, [["the café of a town", "a coffee house"]])))  # fmt: skip
    texts = {i: [" ".join(tokenize(text)) for text in each] for i, each in enumerate(references)}
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=en -Dfile.encoding=UTF-8")
    total, each = Meteor().compute_score(texts, {i: [" ".join(tokenize(text))] for i, text in enumerate(captions)})
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE -Dfile.encoding=ISO-8859-1")
    found = metrics.add_meteor(metrics.evaluate_captions(captions, references), captions, references)
    assert found.scores["METEOR"] == pytest.approx(total, abs=1e-9)
    assert found.pictures["METEOR"] == pytest.approx(each, abs=1e-9)
    assert 0.3 < found.pictures["METEOR"][0] < 1 and found.pictures["METEOR"][2] == 0 and len(each) == 4
    assert set(metrics.SCORES) < set(found.scores)


def test_captions_cannot_add_questions_or_fields():
    words = tokenize(CAPTIONS[2])
    question = meteor._question(words, [tokenize(text) for text in REFERENCES[2]])
    assert question == "SCORE ||| a café -lrb- and a bar -rrb- ||| a coffee house ||| a café eval 1 score"
    assert meteor._question(["a|||b", "c\nd"], [["e\r", "f"]]) == "SCORE ||| e f ||| a b c d"


ANSWERS = f"while read line; do case $line in SCORE*) echo {' '.join('1' * meteor.STATISTICS)};; *)"


@pytest.mark.parametrize("script, message", [  # with a limit of 0.5 s where it is reached
    ("echo Error: no memory >&2; exit 1", r"the METEOR program stopped \(Error: no memory\)"),
    ("exit 0", r"stopped \(without a message\)"),
    ("sleep 30", "did not finish within 0.5 s"),
    ("sleep 30 & cat > /dev/null", "did not finish within 0.5 s"),
    ("echo What do you want?; cat > /dev/null", "answered 'What do you want\\?' instead of 23 numbers"),
    ("read line; echo 1 2 3; cat > /dev/null", "answered '1 2 3' instead of 23 numbers"),
    ("yes 1 | tr '\\n' ' '", "answered '1 1 1.* instead of 23 numbers"),
    (f"{ANSWERS} exit 3;; esac; done", r"stopped \(without a message\)"),
    (f"{ANSWERS} echo 0.5;; esac; done", "did not finish"),  # fewer scores than pictures
    (f"{ANSWERS} echo nan;; esac; done", "answered 'nan' instead of 1 numbers"),
    (f"{ANSWERS} for i in 1 2 3 4 5; do echo 7; done;; esac; done", r"a score outside \[0, 1\]"),
])  # fmt: skip
def test_a_program_that_fails_is_an_error_of_one_line(fake_java, script, message):
    fake_java(script)
    began = time.monotonic()
    with pytest.raises(metrics.MeteorError, match=message) as caught:
        meteor.score_meteor([["a", "dog"]] * 4, [[["a", "cat"]]] * 4, limit=0.5 if "did not" in message else 30)
    assert "\n" not in str(caught.value) and time.monotonic() - began < 25


def test_nothing_is_left_running(fake_java, tmp_path):
    fake_java(f"sleep 300 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(metrics.MeteorError, match="did not finish"):
        meteor.score_meteor([["a"]], [[["a"]]], limit=5)
    pid = (tmp_path / "pid").read_text().strip()
    deadline = time.monotonic() + 10
    while subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True).stdout.strip()[:1] not in (b"", b"Z"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_java_or_the_jar_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(meteor, "find_jar", lambda: "meteor.jar")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(metrics.MeteorError, match="java was not found; install a Java runtime"):
        meteor.score_meteor([["a"]], [[["a"]]])
    monkeypatch.undo()
    monkeypatch.setattr(meteor, "find_java", lambda: "java")
    monkeypatch.setattr(meteor.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(metrics.MeteorError, match=r"meteor-1.5.jar was not found; `pip install pycocoevalcap`"):
        meteor.score_meteor([["a"]], [[["a"]]])


def test_the_table_has_a_column_where_a_model_has_meteor():
    scores = dict.fromkeys(metrics.SCORES, 0.5)
    lines = metrics.format_scores({"rnn": scores | {"METEOR": 0.25}, "lstm": scores}).splitlines()
    assert [line.split()[-1] for line in lines] == ["METEOR", "25.0", "-"] and len({len(line) for line in lines}) == 1
    assert "METEOR" not in metrics.format_scores({"lstm": scores})
