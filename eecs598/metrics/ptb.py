"""The tokenizer for scoring captions: a Python version of Stanford's PTBTokenizer.

COCO's evaluation code tokenizes captions with a Java program, PTBTokenizer of CoreNLP 3.4.1 with -preserveLines and
-lowerCase, and removes punctuation (pycocoevalcap's `tokenizer`). This module gives the same words without Java. It was
written from the program's output and is compared with it in tests/metrics/test_ptb.py. The rules are those of the Penn
Treebank: "don't" becomes do|n't, "dog's" dog|'s, "cannot" can|not; "t-shirt", "o'clock", "10:30" and "and/or" are not
split. There are two intended differences. Chinese and Japanese, which have no spaces, are split into characters. If
the last word of a caption is a letter with a full stop, as in "wearing a size S.", the Java program keeps or drops the
full stop depending on the next caption in the file; here it is kept.

Training captions are tokenized by `eecs598.coco.captions.tokenize`, which also drops brackets.
"""

import re

from eecs598.scripts import MARKS, split_characters

# Tokens that the scorer drops as punctuation. Brackets are not dropped, since they are in lower case here (-lrb-).
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Abbreviations, which keep their full stop.
_ABBREVIATIONS = """
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
    ala ariz calif colo conn ct dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt
    wis wisc wyo
    mr mrs ms mlle mme dr drs prof profs pres gov govs sen sens rep reps rev hon jr sr esq msgr ph(?:[.]d)? ed[.]d
    gen adm brig capt cmdr col comdr cpl lieut lt maj pfc pvt sgt spc sfc insp supt treas atty asst
    bros co cos corp inc ltd plc cie assn assoc bhd dept univ natl intl elec ens invt sys seq
    ave bldg blvd rd sq rt mt ft st ste tel ext est al etc vs cf adj adv det alex jos wm
"""
_WITH_A_CAPITAL = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_NOT_IN_CAPITALS = "mfg mtg pte ptes pty ptys ppte ppty"
_BEFORE_A_NUMBER = "art ca figs? nos? op pp prop"
# Before one of these words, the full stop after a single letter ends a sentence: "in group b. The dog".
_BEGINNINGS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One
    Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You
"""


def _one_of(words, *cases):
    """A pattern that matches any of the words in any of the cases, which are functions such as str.upper."""
    return f"(?:{'|'.join(case(word) for word in words.split() for case in cases or [str])})"


# Sub-patterns, named in capitals in the rules below.
_PARTS = {
    "LETTER": r"(?:[^\W\d_²³¹¼-¾⁰-\u218f\U00010000-\U0010ffff]|[\u02c2-\u02ffMARKS])",
    "ALNUMS": r"(?:[^\W_²³¹¼-¾⁰-\u218f\U00010000-\U0010ffff]|[\u02c2-\u02ff\xadMARKS])+",
    "NUMBER": r"(?:\d*(?:[.:,]\d+)+|\d+)",
    "APOSTROPHE": "(?:['\x92’]|(?i:&apos;))",
    "SPACE": r"[ \t\n\xa0]",
    "ADDRESS": r"[^ \t\n\"'`<>|.!?(){},;$:/_-]",
    "BEGINNING": _one_of(_BEGINNINGS, str, str.upper),
    "ABBREVIATION": _one_of(_ABBREVIATIONS),
    "STATE": _one_of(_WITH_A_CAPITAL, str, str.upper),
    "COMPANY": _one_of(_NOT_IN_CAPITALS, str, str.title),
    "COUNTED": _one_of(_BEFORE_A_NUMBER),
}
# At each position the rule with the longest match applies, the first one of several. If a rule has a group, the group
# is the token, and the rest of the rule is lookahead.
_RULES = [
    # words and clitics
    r"LETTER(?:ALNUMS)?",
    r"(LETTER(?:ALNUMS)?)APOSTROPHE(?i:[msd]|re|ve|ll)",
    r"([A-Za-z]*[A-MO-Za-mo-z])[nN]APOSTROPHE[tT]",
    r"(APOSTROPHE(?i:[msd]|re|ve|ll))[^A-Za-z]",
    r"([nN]APOSTROPHE[tT])[^A-Za-z]",
    r"('[tT])(?i:is|was)",
    r"([yY]APOSTROPHE)LETTER",
    r"([mM]ore)APOSTROPHEn",
    # words with an apostrophe
    r"(?:[dDlLoO]['’](?=[^\W_]{2}))?ALNUMS(?:[-_֊‐‑](?:[dDlLoO]['’](?=[^\W_]{2}))?ALNUMS)*",
    r"[A-HJ-XZn]['’][A-Za-z]{2,}",
    r"[A-Za-z]+[aeiouyAEIOUY]APOSTROPHE[aeiouA-Z][A-Za-z]*",
    r"APOSTROPHE[nN]APOSTROPHE?",
    r"[dDjJlL]APOSTROPHE|APOSTROPHE(?i:em|till?|cause)",
    r"(?i:dunkin|somethin|ol)APOSTROPHE|(?i:capAPOSTROPHEn|cAPOSTROPHE(?:mon|est)|eAPOSTROPHEer|evAPOSTROPHEry)",
    r"(?i:oAPOSTROPHEclock)",
    r"[sS]APOSTROPHEmores",
    r"(')[A-Za-z][^ \t\n\xa0]",  # an opening quotation mark
    r"APOSTROPHE(?i:[msd]|re|ve|ll)",
    # words with a full stop
    r"(?i:ABBREVIATION)\.|STATE\.|COMPANY\.",
    r"((?i:COUNTED)\.)SPACE?\d",
    r"[A-Za-z]\.(?!SPACE+BEGINNINGSPACE)",
    r"[A-Za-z](?:\.[A-Za-z])+\.?",
    r"LETTER(?:ALNUMS)?(?:[.!?]LETTER(?:ALNUMS)?)+",
    r"((?i:ABBREVIATION)\.)[\s\S]{2}",
    r"(ALNUMS(?:[-_.]ALNUMS)*\.)[,;:]",
    r"(ALNUMS(?:\.ALNUMS)*\.(?i:gif|jpe?g|png|bmp|html?|pdf|txt|doc|mp3|java|py|c|h))[ \n.?!,]",
    # words with other symbols
    r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:(?:[A-Za-z]\.){2,}|[A-Za-z0-9]+))+",
    r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
    r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+|[cCfF]\#|[cC]\+\+|(?i:s&p-500|s&ls|pro-|anti-)",
    r"@[A-Za-z_][A-Za-z0-9_]*|\#LETTER+",
    # numbers
    r"[-+]?NUMBER",
    r"(?:\d{1,4}[- \xa0])?\d{1,4}[/⁄]\d{1,4}|[¼½¾⅓⅔]",
    r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
    r"APOSTROPHE[2-9]0[sS]|(APOSTROPHE\d\d)SPACE",
    r"(?:\(\d{2,3}\)[ \xa0]?|(?:\+\+?)?(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0])\d{3,4}[- \xa0]?\d{3,5}",  # telephone
    r"[A-Z]*\$|[¢£¤¥€₠\x80]",
    # addresses
    r"(?i:https?)://[^ \t\n\"<>|()]+[^ \t\n\"<>|.!?(){},-]",
    r"((?:www\.(?:ADDRESS+\.)+[A-Za-z]{2,4}|(?:ADDRESS+\.)+(?:com|net|org|edu))"
    r"(?:/[^ \t\n\"<>|()]+[^ \t\n\"<>|.!?(){},-])?)[^A-Za-z]",
    r"[A-Za-z0-9][^ \t\n\"<>|(){}\xa0]*@(?:[^ \t\n\"<>|(){}.\xa0]+\.)*[^ \t\n\"<>|(){}.\xa0]+",
    # markup, emoticons, symbols
    r"</?[A-Za-z!?](?:[^<>\"\n]|\"[^\"\n]*\")*>|(?i:&(?:ht|tl|ur|lr|qc|ql|qr|odq|cdq|\#\d+|[a-z]acute|amp|lt|gt|apos|mdash|ndash|md);)|&(?:quot|nbsp);",
    r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|(?i:-[lr][rcs]b-)",
    r"([<>]?[:;=][-o*']?[][()DPdpO3\\{@|])[^A-Za-z]|-_-|\^_\^|\(\^_\^\)|>_<|[oOT]_[oOT]",
    r"--+|=+|<<|>>|[?!]+|\*+|\#+|_+|''|[][(){}/\\&%+<>^|~@]",
    r"[¡¥-©¬®-´¶-¹¿×÷‖-‗‚„-‣‰-‸※‾-⁂⁄⁰-⁾₀-₎₤℀-⅏⅐-⅟←-⯿]",
]
_WRITTEN = {
    "£": "#", "€": "$", "¤": "$", "₠": "$", "\x80": "$", "¢": "cents",
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&nbsp;": "'", "&apos;": "'",
    "&mdash;": "--", "&ndash;": "--", "&md;": "--", "---": "--", "----": "--", "\xad": "-",
}  # fmt: skip
_HALVES = {
    "cannot": ["can", "not"], "gonna": ["gon", "na"], "gotta": ["got", "ta"], "wanna": ["wan", "na"],
    "gimme": ["gim", "me"], "lemme": ["lem", "me"],
}  # fmt: skip
_PLAIN_WORD = re.compile(r"[ \t]*([A-Za-z]+)(?=[ \t\n])")


def _compile(rule):
    for name, pattern in _PARTS.items():
        rule = rule.replace(name, pattern)
    return re.compile(rule.replace("MARKS", MARKS))


_COMPILED = [_compile(rule) for rule in _RULES]
_CLITIC = re.compile("(['\x92’]|&apos;)(?:[msdt]|re|ve|ll)|n(['\x92’]|&apos;)t")


def tokenize(caption):
    """The words of a caption as COCO's evaluation code finds them: lower-case strings, without punctuation."""
    text = split_characters(re.sub(r"[\r\n\v\f\x85\u2028\u2029]", " ", caption)) + "\n"
    tokens, at = [], 0
    while at < len(text):
        if plain := _PLAIN_WORD.match(text, at):  # fast path, for most words
            word, at = plain[1].lower(), plain.end()
            tokens += _HALVES.get(word, [word])
            continue
        matches = [match for rule in _COMPILED if (match := rule.match(text, at))]
        if not matches:  # a space, punctuation that would be dropped, or an unknown character
            at += 1
            continue
        longest = max(matches, key=lambda match: match.end())
        token = longest[longest.lastindex or 0]
        at += len(token)
        tokens += _write(token, cut=bool(longest.lastindex))
    return [token for token in tokens if token not in PUNCTUATION]


def _write(token, cut):
    """The tokens that a match is written as. cut: the match is part of a longer word, as "cannot" in "cannot've"."""
    token = token.lower().replace(" ", "\xa0")
    if token in _WRITTEN:
        return [_WRITTEN[token]]
    if token in _HALVES and not cut:
        return _HALVES[token]
    if token[:1] == "." and not token.strip(".\xa0"):  # an ellipsis of any length
        return ["..."]
    if _CLITIC.fullmatch(token):
        token = re.sub("[\x92’]|&apos;", "'", token)
    for sign, name in (("\xad", ""), ("(", "-lrb-"), (")", "-rrb-"), ("&amp;", "&")):
        token = token.replace(sign, name)
    return [token]
