"""What columns, codes and signs are called where transactions are written: English and ten other languages.

A name alone decides nothing: it chooses among columns whose values fit.
"""

from __future__ import annotations

import re
import unicodedata

_CYRILLIC = dict(
    zip("абвгдезийклмнопрстуфыэ", "abvgdeziyklmnoprstufye", strict=True),
    ж="zh", х="kh", ц="ts", ч="ch", ш="sh", щ="sch", ъ="", ь="", ю="yu", я="ya", ё="e", і="i", ї="i", є="e",
)  # fmt: skip
_LATIN = {"ß": "ss", "ø": "o", "æ": "ae", "œ": "oe", "ł": "l", "đ": "d", "ı": "i"}


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Roles -> what their names hold, after `words_of`; German and Dutch join words, so most stand without a boundary.
_NAMES = {
    "client": r"\b(cl|cust|cif|user|member|person|household|party)\b|client|customer|\bkund|klant|klient|abonent|"
    r"usuario|subscriber|uchastnik",
    "account": r"\b(acct?|pan|iban)\b|account|konto|rekening|cuenta|\bconta\b|\bconto\b|compte|schet|\bschyot|ucet|"
    r"\bcard|karte|tarjeta|\bcarte|kaart|\bkart|wallet|msisdn|rachunek",
    "key": r"\b(id|nr|no|num|key|code|iban|pan)\b|numm|number|nomer|numero|^[a-z]+$",
    "trait": r"\b(name|age|type|segment|city|town|gender|sex|group|since|class|status|country|region|zip|phone|e?mail|"
    r"income|category|level|tier|currency|balance|limit)\b|gruppe|segment",
    "person": r"counter|gegen|tegen|benefi|begunst|empfang|zahlungs|payee|payer|recip|contrap|poluchat|otprav|"
    r"kontragent|protist|naam|holder|^(full )?name$",
    "other": r"partner|merchant|\b(to|from|dest|bank)\b|destin|shop|store|\bbic\b",
    "time": r"date|datum|fecha|\bdata\b|\bdatum|time|zeit|\btag\b|buchungstag|\bts\b|\bday\b|\bwhen\b|stamp|hora|heure|"
    r"\bdt\b|epoch|vremya|\bden\b|\bdia\b|dzien",
    "booking": r"transac|trans|booking|buchung|posting|posted|operat|operac|operaz|event|purchase|invoice|provedeni|"
    r"sovershen|afschrift|boek",
    "late": r"valu|settle|wert|birth|geburt|naissance|nacim|expir|ablauf|due|faellig|open|creat|updat|load|modif|"
    r"ingest|export|etl|issued|registr",
    "clock": r"time|zeit|\buhr|hora|heure|\bora\b|tijd|vremya|cas\b|godzina",
    "hour": r"^(hour|stunde|hora|heure|ora|uur|chas|hodina)( of day)?$",
    "amount": r"amount|\bamt\b|betrag|umsatz|montant|import[eo]|\bvalor|valore|bedrag|\bsumm?a|kwota|castka|\bsum\b|"
    r"total|\bspen[dt]|sales value|belopp|\bbelob|suma\b|\bwert\b|volume|\bvalue\b|\bpaid\b",
    "price": r"price|preis|prix|precio|prezzo|prijs|\btsena|\bcena\b|unit cost",
    "quantity": r"quantity|\bqty\b|menge|anzahl|quantit|cantidad|aantal|kolichestvo|\bkol\b|\bunits\b|pieces",
    "not_amount": r"balance|saldo|solde|ostatok|\bfee\b|\btax\b|\bvat\b|mwst|\brate\b|disc|limit|\bcount|\bnr\b|\bid\b|"
    r"code|\blat|\blon|score|\bage\b|year|month|\bday\b|week|zustatek|saldo|running|wechselkurs|komissi",
    "debit": r"debit|withdraw|money out|paid out|\bsoll\b|cargo|\baf\b|\buit\b|raskhod|spisan|\bdebe\b|lastschrift|"
    r"belastung|outflow|\bout\b|payments?\b|uscit|addebit|debet|vydaj|obciazen|dare",
    "credit": r"credit|deposit|money in|paid in|\bhaben\b|abono|\bbij\b|prikhod|postupl|zachisl|\bhaber\b|gutschrift|"
    r"inflow|\bin\b|receipts?\b|entrat|accredit|prijem|uznan|avere",
    "currency": r"currency|\bccy\b|\bcurr?\b|wahrung|waehrung|devise|moneda|moeda|valuta|valyuta|\bmena\b|divisa|munt",
    "event": r"\bid\b|trans|txn|trx|refer|\bref\b|beleg|\bnr\b|\bno\b|number|nummer|uuid|guid|operation|operaz|nomer|"
    r"invoice|\bkey\b|num\b",
    "label": r"target|label|churn|\bdefault|fraud|\bresponse\b|outcome|attrit|\b(is )?bad\b|respond(ed|s)?\b|convert|"
    r"^(y|zielvariable|tselev\w*|ottok|abwanderung|objetivo|cible)$",
    "maybe_label": r"^(status|state|class|klasse|flag|result|deposit|good)$|\bflag\b",
    "direction": r"\b(dc|d c|cd|c d|dr|cr|drcr|crdr|sign|side|ind|indicator|type|kind|direction|flow|operation|op|art|"
    r"sens|richtung|kennzeichen|soll|haben|debit|credit|vorzeichen|tip|vid|tipo|znak|af bij)\b|debet|sens\b|napravlen",
    "no_direction": r"card|karte|channel|kanal|product|account|device|segment|status",
    "mcc": r"\bmcc\b|merchant category code",
    "text": r"descri|zweck|memo|note|text|narrat|detail|comment|libelle|concept|omschrijving|naznach|opis|popis|"
    r"causale|kommentar|opisanie|mededeling",
    "code": r"\bid\b|code|\bnr\b|\bno\b|type|kind|categ|klass|class|zip|plz|postal|phone|mcc|group|store|shop|branch|"
    r"filial|terminal|kod\b|tip\b|vid\b|week|month|year|\bday\b|number|nummer|num\b",
    "description": r"descri|name|title|text|bezeich|beschr|meaning|label|opis|libell|nombre|naam|nazv|naimenov",
}
_PATTERNS = {role: re.compile(pattern) for role, pattern in _NAMES.items()}

_OUT = (
    "d dr dt db deb debit debet soll s out o outgoing outflow af uit cargo debe - expense spend spent withdrawal "
    "purchase payment rashod raskhod vydaj vyber výdaj výběr расход дебет списание sortie débit uscita addebito saída "
    "saida débito debito wydatek obciążenie belastung lastschrift ausgang ausgabe"
)
_IN = (
    "c cr ct kt cre credit kredit haben h in i incoming inflow bij abono haber + income deposit refund prikhod prijem "
    "příjem приход кредит зачисление поступление entrée crédit entrata accredito entrada crédito credito wpływ uznanie "
    "gutschrift eingang einnahme withdrawal_reversal"
)
DIRECTIONS: dict[str, str] = {**dict.fromkeys(_OUT.split(), "-"), **dict.fromkeys(_IN.split(), "+")}
"""Codes of money going out and coming in, in small letters."""
PAIRS = (("CR", "DR"), ("Cr", "Dr"), ("cr", "dr"), ("C", "D"), ("H", "S"))
"""Words at a number: of money coming in, and going out."""
MARKS = {word: sign for pair in PAIRS for word, sign in zip(pair, "+-", strict=True)}
"""Words at a number, and the sign that they mean."""
SIGNS = {
    "€": "EUR", "$": "USD", "£": "GBP", "¥": "JPY", "₽": "RUB", "₴": "UAH", "₹": "INR", "₺": "TRY", "₩": "KRW",
    "₪": "ILS", "₦": "NGN", "₸": "KZT", "zł": "PLN", "Kč": "CZK", "kč": "CZK", "Ft": "HUF", "R$": "BRL", "US$": "USD",
    "kr": "SEK", "Fr": "CHF", "руб": "RUB", "р": "RUB", "лв": "BGN", "lei": "RON",
}  # fmt: skip
"""Signs of currencies."""
SHARED_SIGNS = {"$", "¥", "kr", "Fr", "р"}
"""Those that several currencies have."""
CURRENCIES = _set(
    "AED ARS AUD BAM BGN BRL BYN CAD CHF CLP CNY COP CZK DKK EGP EUR GBP GEL HKD HUF IDR ILS INR ISK JPY KES KRW "
    "KZT MAD MXN MYR NGN NOK NZD PEN PHP PKR PLN QAR RON RSD RUB RUR SAR SEK SGD THB TND TRY TWD UAH USD UZS VND "
    "ZAR DEM ATS FRF ITL ESP NLG BTC ETH USDT USDC"
)
"""Codes of currencies that are taken for such."""
ABSENT = frozenset({"null", "#n/a", "none", "nan", "nat", "n/a", "na", "-", "--", "\\n", "<na>", "(null)", "nil", "?"})
"""Words for an absent value, in small letters."""
POSITIVE = _set(
    "1 yes y true t ja j si sí oui o da да sim tak ano bad churn churned default fraud left leaves positive "
    "closed responded"
)
"""Words for the class that is asked for, in small letters."""
NEGATIVE = _set(
    "0 no n false f nein non nie ne nee нет não nao good stay stayed stays active negative paid open current ok"
)
"""Words for the other class."""


def words_of(name: str) -> str:
    """A column name in small Latin letters, its words apart: `BookingDate`, `Дата` -> booking date, data."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    small = "".join(_CYRILLIC.get(sign, _LATIN.get(sign, sign)) for sign in apart.lower())
    bare = "".join(sign for sign in unicodedata.normalize("NFKD", small) if not unicodedata.combining(sign))
    return " ".join(re.sub(r"[^a-z0-9]+", " ", bare).split())


def is_called(name: str, *roles: str) -> bool:
    """Whether a column is named as one of these roles is."""
    return any(_PATTERNS[role].search(words_of(name)) for role in roles)


def slug(name: str) -> str:
    """The name as a column of a table: small Latin letters, digits and `_`."""
    made = words_of(name).replace(" ", "_")[:40].strip("_")
    return made if re.match(r"[a-z]", made) else f"column_{made}".strip("_")
