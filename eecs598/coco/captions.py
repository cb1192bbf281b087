"""Tokenizing captions, the vocabulary, encoding and decoding."""

import re
import unicodedata
from collections import Counter

import torch

from eecs598.scripts import MARKS, split_characters

NULL, START, END, UNK = SPECIAL_TOKENS = ("<NULL>", "<START>", "<END>", "<UNK>")
MAX_WORDS = 15
MAX_LENGTH = MAX_WORDS + 1  # of a generated caption: its words and <END>
CAPTION_LENGTH = MAX_WORDS + 2  # of a caption in a data file: <START>, at most 15 words, <END>
MIN_COUNT = 4  # rarer words become <UNK>, unless another number is given


class DataError(ValueError):
    """A data file, picture or captions file cannot be used. The message is one line."""


def shorten_error(error):
    """A short one-line description of an exception, without the path."""
    text = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "")
    return f"{text:.150}" or type(error).__name__


# --- words --------------------------------------------------------------------------------------------------

# What the Penn Treebank splits: do|n't, dog|'s, should|n't|'ve, and these.
_LETTER, _CLITICS = rf"(?:[^\W_]|[{MARKS}])", r"(?:n't|'(?:s|m|d|re|ve|ll))"
_CLITIC = rf"{_CLITICS}(?={_CLITICS}*(?!{_LETTER}))"
_SPLIT_CLITIC = re.compile(rf"(?<={_LETTER})(?={_CLITIC})")
_JOINED = ("can not", "gon na", "wan na", "got ta", "gim me", "lem me", "y' all", "'t is", "'t was")
_JOINED = {pair.replace(" ", ""): pair.split() for pair in _JOINED}
# Abbreviations in captions whose full stop Stanford's tokenizer keeps.
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|jr|sr|st|mt|ft|ave|blvd|rd|ct|sq|co|inc|ltd|corp|bros|dept|univ|etc|vs|prof|gen|col|capt|lt"
    r"|sgt|rev|gov|sen|rep|pres|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|ph\.d"
)
_TOKEN = re.compile(
    rf"""
    [^\W\d_]+(?=\s)  # fast path, for most words
    | {_CLITIC}
    | 'n'? (?!\w) | 'em\b | '\d\ds\b | (?<!\w)'t(?:(?:is|was)\b|(?=\s(?:is|was)\b)) | \by'(?=\sall\b)
    | (?<![^\W\d_]) [^\W\d_] (?:\.[^\W\d_])* \. (?!{_LETTER})          # plan b., u.s., d.c.
    | \b(?:{_ABBREVIATIONS})\.(?!{_LETTER}) | \bno\.(?=\s?\d)          # st., mr.; no. 5
    | (?<!{_LETTER}) \d+ (?:[:]\d+)+                                   # 10:30, also of 10:30pm
    | (?: (?<![\w.,:%$+-]) [-+]?\.? (?=\d) )?                          # -5, .5
      {_LETTER}+ (?: (?: [-_/] | (?<=[^\W\d_])['.](?=[^\W\d_]) | (?<=\d)[.,](?=\d) ) {_LETTER}+ )*
    | [#$%&+/<=>@\\^|~] | \*+
    """,
    re.VERBOSE,
)


def unify_spelling(caption):
    """The caption in NFC (an accented letter is one character), with a typographic apostrophe as a plain one."""
    return unicodedata.normalize("NFC", caption).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def tokenize(caption):
    """The words of a caption: a list of lower-case strings, without punctuation.

    The rules are those of PTBTokenizer (Stanford's tokenizer and the punctuation list of COCO's evaluation code):
    "don't" becomes ["do", "n't"], "a dog's" ["a", "dog", "'s"]; "10:30", "1.5", "t-shirt", "o'clock", "and/or" and
    "u.s." are not split; "#", "&" and "$" are words. Unlike there, brackets and "?!" are dropped too, and "AT&T" is
    split in upper case as in lower case. Chinese and Japanese are split into characters. Tokenizing the joined
    tokens again changes nothing.
    """
    text = unify_spelling(caption).lower().replace("\N{SOFT HYPHEN}", "")
    found = _TOKEN.findall(_SPLIT_CLITIC.sub(" ", split_characters(text)))
    return [word for token in found for word in _JOINED.get(token, (token,))]


def build_vocabulary(captions, min_count=1):
    """The vocabulary of words that occur at least `min_count` times in `captions` (lists of tokens).

    Returns {"idx_to_token": list, "token_to_idx": dict}. `<NULL> <START> <END> <UNK>` are 0 to 3, followed by the
    words in order of descending count, ties in alphabetical order.
    """
    counts = Counter(word for words in captions for word in words)
    kept = [word for word, count in counts.items() if count >= min_count and word not in SPECIAL_TOKENS]
    tokens = [*SPECIAL_TOKENS, *sorted(kept, key=lambda word: (-counts[word], word))]
    return {"idx_to_token": tokens, "token_to_idx": {token: i for i, token in enumerate(tokens)}}


def encode_captions(captions, vocab):
    """Encode lists of tokens as an int64 tensor (n, CAPTION_LENGTH): `<START>`, words, `<END>`, then `<NULL>`.

    Words outside the vocabulary become `<UNK>`; longer captions are cut to MAX_WORDS words.
    """
    ids = vocab["token_to_idx"]
    encoded = torch.full((len(captions), CAPTION_LENGTH), ids[NULL], dtype=torch.int64)
    for row, words in zip(encoded, captions):
        line = [ids[START], *(ids.get(word, ids[UNK]) for word in words[:MAX_WORDS]), ids[END]]
        row[: len(line)] = torch.tensor(line)
    return encoded


def decode_captions(captions, idx_to_word, specials=True):
    """Captions as text. captions (N, T) or (T,) ids, idx_to_word a list or dict from id to word.

    A caption ends with <END>; <NULL> is left out, and without `specials`, <START> and <END> too. Returns a list
    of N strings, or one string for a single caption. Raises ValueError for another shape and for invalid ids.
    """
    captions = torch.as_tensor(captions)  # numpy arrays too
    if captions.ndim not in (1, 2):
        raise ValueError(f"captions are {tuple(captions.shape)}; they must be (N, T) or (T,)")
    ids = idx_to_word if isinstance(idx_to_word, dict) else range(len(idx_to_word))
    if unknown := [i for i in captions.unique().tolist() if i not in ids or captions.is_floating_point()]:
        raise ValueError(f"captions ({captions.dtype}) contain {unknown[0]}, which is not a word id; there are "
                         f"{len(ids)}")  # fmt: skip
    if captions.ndim == 1:
        return decode_captions(captions[None], idx_to_word, specials)[0]
    hidden = {NULL} if specials else {NULL, START, END}
    decoded = []
    for row in captions.tolist():
        words = [idx_to_word[i] for i in row]
        if END in words:
            words = words[: words.index(END) + 1]
        decoded.append(" ".join(word for word in words if word not in hidden))
    return decoded
