"""Data of persons and secrets: found by shape and checksum, masked or a reason to drop the document."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence

from tasks.cleaning.base import DocumentStep, Verdict
from tasks.cleaning.settings import PiiSettings

# Every pattern asks for something that is rare and quickly looked for: in the text itself, or in its shape, where
# digits are 0 and capitals A. So a text without any of this is read a few times by fast searches and by no pattern.
_SHAPE = bytes(48 if 48 <= byte <= 57 else 65 if 65 <= byte <= 90 else byte for byte in range(256))

_NAMES = {
    "email": "e-mail address",
    "ip": "IP address",
    "phone": "phone number",
    "key": "key or token",
    "card": "payment card",
    "iban": "bank account",
}

_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_+-])?"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9])")
_FOUR_FIGURES = re.compile(rb"0\.0{1,3}\.0{1,3}\.0")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4})?(?![\w:])")
_COLONS = re.compile(r":[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}:")
# +49 30 1234567 (E.164); (212) 555-0123, 212-555-0123 and 212.555.0123 (North America); "Tel.: 030 1234567". With each
# pattern the shapes of which one must be there.
_PHONES = (
    (
        re.compile(r"()(\+(?<![\w+]\+)[1-9][0-9]{0,2}(?:[ ./-]?\(?[0-9]{1,4}\)?){2,6})(?!\w)"),
        (b"+0",),
    ),
    (
        re.compile(
            r"()((?<![\w.+-])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[.-][0-9]{4})"
            r"(?![\w-]|\.[0-9])"
        ),
        (
            *(b"000-000-0000", b"000.000.0000", b"000-000.0000", b"000.000-0000"),
            *(b")000-0000", b") 000-0000", b") 000.0000", b")000.0000"),
        ),
    ),
    (
        re.compile(r"((?:[Tt]el(?:\.:|[.:])|[Pp]hone:|[Ff]ax:) )(\(?[0-9][0-9() ./-]{5,16}[0-9])(?!\w)"),
        (
            *(b"el: 0", b"el. 0", b"el.: 0", b"hone: 0", b"ax: 0"),
            *(b"el: (", b"el. (", b"el.: (", b"hone: (", b"ax: ("),
        ),
    ),
)
_CARD = re.compile(r"(?<![\w.-])[3-6](?:[ -]?[0-9]){12,18}(?![\w-]|\.[0-9])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_IBAN_TEXT = """
AD=24 AE=23 AL=28 AT=20 AZ=28 BA=20 BE=16 BG=22 BH=22 BR=29 BY=28 CH=21 CR=22 CY=28 CZ=24 DE=22 DK=18 DO=28 EE=20
EG=29 ES=24 FI=18 FO=18 FR=27 GB=22 GE=22 GI=23 GL=18 GR=27 GT=28 HR=21 HU=28 IE=22 IL=23 IQ=23 IS=26 IT=27 JO=30
KW=30 KZ=20 LB=28 LC=32 LI=21 LT=20 LU=20 LV=21 LY=25 MC=27 MD=24 ME=22 MK=19 MR=27 MT=31 MU=30 NL=18 NO=15 PK=24
PL=28 PS=29 PT=25 QA=29 RO=24 RS=22 SA=24 SC=31 SE=24 SI=19 SK=24 SM=27 ST=25 SV=28 TL=23 TN=24 TR=26 UA=29 VA=22
VG=24 XK=20
"""
_IBAN_CHARS = {pair[:2]: int(pair[3:]) for pair in _IBAN_TEXT.split()}
# (a piece that must be there, pattern): the pieces are looked for first, which costs nearly nothing
_KEYS = tuple(
    (piece, re.compile(pattern))
    for piece, pattern in (
        ("AKIA", r"(?<!\w)AKIA[0-9A-Z]{16}(?!\w)"),
        ("ASIA", r"(?<!\w)ASIA[0-9A-Z]{16}(?!\w)"),
        ("glpat-", r"(?<!\w)glpat-[A-Za-z0-9_-]{20,}"),
        ("sk-", r"(?<![\w-])sk-(?:[a-z]+[0-9]*-)*[A-Za-z0-9_-]{20,}"),
        ("AIza", r"(?<!\w)AIza[0-9A-Za-z_-]{35}(?![\w-])"),
        ("ya29.", r"(?<!\w)ya29\.[0-9A-Za-z_-]{20,}"),
        ("xox", r"(?<!\w)xox[abeoprs]-[0-9A-Za-z-]{10,}"),
        ("SG.", r"(?<!\w)SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}"),
        ("eyJ", r"(?<![\w-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
        (
            "PRIVATE KEY",
            r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY( BLOCK)?-----"
            r"(?s:.){0,20000}?(?:-----END [A-Z ]{0,20}PRIVATE KEY( BLOCK)?-----|\Z)",
        ),
        (
            "_",  # GitHub, Hugging Face, npm, Stripe: an underscore is rare in prose
            r"(?<!\w)(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}|hf_[A-Za-z0-9]{30,255}"
            r"|npm_[A-Za-z0-9]{36}|[rsp]k_live_[0-9A-Za-z]{16,255})(?!\w)",
        ),
    )
)


class Pii(DocumentStep):
    """Finds e-mail addresses, public IP addresses, phone numbers, keys, payment cards and bank accounts.

        "Write to ann@example.org or call +49 30 1234567." -> "Write to <EMAIL> or call <PHONE>."

    What has a checksum must pass it: cards Luhn's (ISO/IEC 7812) with a known issuer's first digits and length, IBANs
    modulo 97 and their country's length (ISO 13616). Of IP addresses only public ones are masked (RFC 6890): 127.0.0.1
    and 192.168.0.1 name nobody. Phone numbers have a country code (E.164), North America's form, or stand after
    "Tel.:", "Phone:" or "Fax:". Names and postal addresses are not found. With action=drop a document with any of
    these goes. In samples what was found is shown with its letters and digits blotted out.
    """

    settings: PiiSettings

    def __init__(self, settings: PiiSettings, evaluation: object = None) -> None:
        self.settings = settings
        finders: dict[str, Callable[[str, bytes, _Sub], str]] = {
            "key": _keys,
            "email": _emails,
            "iban": _ibans,
            "card": _cards,
            "ip": _ips,
            "phone": _phones,
        }
        # in this order: a key may have digits that look like a phone number, an IBAN those of a card
        self.finders = [(kind, find) for kind, find in finders.items() if kind in settings.find]

    def clean(self, texts: Sequence[str]) -> list[Verdict]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Verdict:
        masked, counts = self._masked(text, lambda kind, found: f"<{kind.upper()}>")
        if not counts:
            return Verdict(text)
        if self.settings.action == "drop":
            first = next(name for name in _NAMES.values() if name in counts)
            return Verdict(None, f"has a {first}" if first[0] not in "eI" else f"has an {first}", counts)
        return Verdict(masked, "personal data or keys masked", counts)

    def shown(self, text: str) -> str:
        """A text as a sample may show it: `a••@•••••••.•••`."""
        return self._masked(text, lambda kind, found: found[0] + re.sub(r"[^\W_]", "•", found[1:]))[0]

    def _masked(self, text: str, tag: Callable[[str, str], str]) -> tuple[str, dict[str, int]]:
        counts: Counter[str] = Counter()
        shape = text.encode().translate(_SHAPE)
        for kind, find in self.finders:

            def replace(found: str, kind: str = kind) -> str:
                counts[_NAMES[kind]] += 1
                return tag(kind, found)

            text = find(text, shape, replace)
        return text, dict(counts)


_Sub = Callable[[str], str]


def _emails(text: str, shape: bytes, tag: _Sub) -> str:
    return _EMAIL.sub(lambda m: tag(m[0]), text) if "@" in text else text


def _keys(text: str, shape: bytes, tag: _Sub) -> str:
    for piece, pattern in _KEYS:
        if piece in text:
            text = pattern.sub(lambda m: tag(m[0]), text)
    return text


def _ips(text: str, shape: bytes, tag: _Sub) -> str:
    def public(match: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            return match[0]
        return tag(match[0]) if address.is_global else match[0]

    if shape.count(b".0") >= 3 and _FOUR_FIGURES.search(shape):
        text = _IPV4.sub(public, text)
    return _IPV6.sub(public, text) if "::" in text or (text.count(":") > 6 and _COLONS.search(text)) else text


def _phones(text: str, shape: bytes, tag: _Sub) -> str:
    def enough(match: re.Match[str]) -> str:
        digits = sum(char.isdigit() for char in match[2])
        return match[1] + tag(match[2]) if 7 <= digits <= 15 else match[0]

    for pattern, shapes in _PHONES:
        for piece in shapes:  # twice as fast as `any` with a generator
            if piece in shape:
                text = pattern.sub(enough, text)
                break
    return text


def _cards(text: str, shape: bytes, tag: _Sub) -> str:
    def valid(match: re.Match[str]) -> str:
        digits = re.sub(r"[ -]", "", match[0])
        return tag(match[0]) if _is_issued(digits) and _luhn(digits) else match[0]

    return _CARD.sub(valid, text) if b"0" * 13 in shape.translate(None, b" -") else text


def _is_issued(digits: str) -> bool:
    """Whether first digits and length are those of a payment card: American Express, Diners, JCB, Visa, Mastercard,
    Maestro, Discover, UnionPay."""
    two, size = int(digits[:2]), len(digits)
    if digits[0] == "4":
        return size in (13, 16, 19)
    if two in (34, 37):
        return size == 15
    if two in (30, 36, 38, 39):
        return size in (14, 16)
    if two == 35 or 51 <= two <= 55:
        return size == 16
    return two in (50, 56, 57, 58, 60, 62, 63, 64, 65, 67) and 13 <= size <= 19


def _luhn(digits: str) -> bool:
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(value // 10 + value % 10 for value in doubled) % 10 == 0


def _ibans(text: str, shape: bytes, tag: _Sub) -> str:
    def valid(match: re.Match[str]) -> str:
        found = match[0].replace(" ", "")
        size = _IBAN_CHARS.get(found[:2], 0)
        if not size or len(found) < size:
            return match[0]
        # what follows the account may look like more of it: "… 3000 and" does not, "… 3000 XY" does
        end, seen = 0, 0
        while seen < size:
            seen += match[0][end] != " "
            end += 1
        number = "".join(str(int(char, 36)) for char in found[4:size] + found[:4])
        return tag(match[0][:end]) + match[0][end:] if int(number) % 97 == 1 else match[0]

    return _IBAN.sub(valid, text) if b"AA00" in shape else text
