"""The shipped data set specs on small files in the official form: names, columns, dictionaries, odd dates."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyspark.sql import Row, SparkSession

from ledgerlm.config import shipped
from ledgerlm.events.ingest import dictionaries, ingest_events
from ledgerlm.events.labels import client_attributes, first_events, labels_of
from ledgerlm.events.spec import load_spec
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.text.serialize import DocumentConf, serialize

Label = tuple[str, str, dt.datetime, float]
AFTER = dt.datetime(2030, 1, 1)  # where a spec gives no as_of, its labels do


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a spec makes of a folder: events by client and time, sorted labels, format to client to document."""

    events: list[Row]
    labels: list[Label]
    texts: dict[str, dict[str, list[str]]]
    attributes: dict[str, Row]
    quarantined: dict[str, int]


def read(spark: SparkSession, name: str, folder: Path, *formats: str) -> Read:
    """Ingests and serialises: the latest document of each client, with the fields of the spec's own protocol."""
    spec = load_spec(f"datasets/{name}.yaml", [f"source.path={folder}"])
    ingested = ingest_events(spark, spec)
    rows = ingested.events.collect()
    counts = ingested.counts()
    counts.check(name)
    # From here on as local rows: one job less for each step.
    events = spark.createDataFrame(rows, ingested.events.schema)
    firsts = first_events(events)
    found = labels_of(spark, spec, firsts, events).labels
    labels = spark.createDataFrame(found.collect(), found.schema)
    books = dictionaries(spark, spec)
    books = None if books is None else spark.createDataFrame(books.collect(), books.schema)
    texts: dict[str, dict[str, list[str]]] = {}
    for form in formats:
        own = spec.protocol.get("serialize", {}) if form == "compact" else {"max_value_length": 200}
        conf = DocumentConf.model_validate({"format": form, **own})
        documents = serialize(events, labels, spec.as_of or AFTER, spec, conf, dictionaries=books)
        last = sorted(documents.collect(), key=lambda row: row.as_of)
        texts[form] = {row.client_id: row.text.split("\n") for row in last}
    return Read(
        events=sorted(rows, key=lambda row: (row.client_id, row.event_time, row.event_seq)),
        labels=sorted((row.client_id, row.task, row.as_of, row.label) for row in labels.collect()),
        texts=texts,
        attributes={row.client_id: row for row in client_attributes(spark, spec, firsts).collect()}
        if spec.clients
        else {},
        quarantined=dict(counts.reasons),
    )


def put(folder: Path, **files: str) -> Path:
    """Writes files; the first underscores of a key stand for its extension: train_csv is train.csv."""
    for name, text in files.items():
        stem, _, extension = name.rpartition("_")
        (folder / f"{stem}.{extension}").write_text(text, encoding="utf-8")
    return folder


def put_parquet(spark: SparkSession, path: Path, values: str, columns: str) -> None:
    spark.sql(f"SELECT * FROM VALUES {values} AS t({columns})").coalesce(1).write.parquet(str(path))


def test_rosbank(spark: SparkSession, tmp_path: Path) -> None:
    put(
        tmp_path,
        train_csv="PERIOD,cl_id,MCC,channel_type,currency,TRDATETIME,amount,trx_category,target_flag,target_sum\n"
        "01/10/2017,0,5411,,810,21OCT17:00:00:00,5023.00,POS,0,0.0\n"
        "01/10/2017,0,742,type1,978,12OCT17:12:24:07,67.00,WD_ATM_ROS,0,0.0\n"
        "01/10/2017,1,9999,type2,810,05OCT17:00:00:00,767.00,DEPOSIT,1,10.0\n",
        test_csv="PERIOD,cl_id,MCC,channel_type,currency,TRDATETIME,amount,trx_category\n"
        "01/02/2017,7,5411,type1,810,22FEB17:00:00:00,42.00,POS\n",
    )
    got = read(spark, "rosbank", tmp_path, "compact", "published")
    assert [row.event_time for row in got.events[:2]] == [
        dt.datetime(2017, 10, 12, 12, 24, 7),
        dt.datetime(2017, 10, 21),
    ]
    as_of = dt.datetime(2019, 1, 1)
    assert got.labels == [("0", "churn", as_of, 0.0), ("1", "churn", as_of, 1.0)]
    assert got.texts["compact"]["0"] == [
        "days|weekday|hour|mcc|channel_type|trx_category|amount|currency",
        "+0d|Thu|12h|Veterinary Services|type1|cash withdrawal at an ATM of the bank|68|EUR",
        "+9d|Sat|0h|Grocery Stores, Supermarkets|-|purchase in a terminal|4700|RUB",
    ]
    # type1 stands twice, then by alphabet the empty code and type2: ranks 2, 3 and 4. ln(68) = 4.2, ln(5024) = 8.5.
    assert got.texts["published"]["0"] == [
        "UNIX days|Amount(rubles, scaled)|Merchant category codes|Channel_type(SWIFT transfer, credit card repayment, "
        "or intra-bank transfer and etc)|Transaction category(ATM withdrawal, purchase in the terminal and etc)",
        "17451, 4, Veterinary Services, 2, cash withdrawal at an ATM of the bank",
        "17460, 8, Grocery Stores, Supermarkets, 3, purchase in a terminal",
    ]
    assert got.texts["published"]["1"][1] == "17444, 6, code 9999, 4, deposit"


def test_gender(spark: SparkSession, tmp_path: Path) -> None:
    put(
        tmp_path,
        transactions_csv="customer_id,tr_datetime,mcc_code,tr_type,amount,term_id\n"
        "39026145,0 10:23:26,4814,1030,-2245.92,\n"
        "39026145,1 10:19:60,6011,7010,56147.89,888987\n"
        "22899,456 23:59:60,4814,1030,0,888987\n"
        "22899,456 24:00:00,4814,1030,5,\n",
        gender_train_csv="customer_id,gender\n39026145,1\n22899,0\n",
        tr_mcc_codes_csv='mcc_code;mcc_description\n4814;"Звонки; телефон"\n6011;Финансовые институты\n',
        tr_types_csv="tr_type;tr_description\n1030;Оплата услуги\n7010;Взнос наличных\n",
    )
    got = read(spark, "gender", tmp_path, "compact", "published")
    assert got.quarantined == {"bad_time": 1}
    assert [row.event_time for row in got.events] == [
        dt.datetime(2016, 4, 1, 23, 59, 59),
        dt.datetime(2015, 1, 1, 10, 23, 26),
        dt.datetime(2015, 1, 2, 10, 19, 59),
    ]
    assert [label[0::3] for label in got.labels] == [("22899", 0.0), ("39026145", 1.0)]
    assert got.texts["compact"]["39026145"][1:] == [
        "+0d|Thu|10h|Звонки; телефон|Оплата услуги|-|-2200",
        "+1d|Fri|10h|Финансовые институты|Взнос наличных|t888987|56000",
    ]
    assert got.texts["published"]["39026145"] == [
        "scaled time|amount(rubles, scaled)|Merchant category codes|Transaction type|Term id",
        "0, -7, Звонки; телефон, Оплата услуги, 3",
        "1, 10, Финансовые институты, Взнос наличных, 2",
    ]
    assert got.texts["published"]["22899"][1] == "456, 0, Звонки; телефон, Оплата услуги, 2"


def test_age(spark: SparkSession, tmp_path: Path) -> None:
    put(
        tmp_path,
        transactions_train_csv="client_id,trans_date,small_group,amount_rur\n"
        "33172,6,4,71.463\n33172,729,35,45.017\n6662,6,4,0\n",
        transactions_test_csv="client_id,trans_date,small_group,amount_rur\n21717,6,204,1013.5\n",
        train_target_csv="bins,client_id\n2,6662\n3,33172\n",
        small_group_description_csv="small_group_code,small_group\n4,Продуктовые магазины\n35,Сервис\n",
    )
    got = read(spark, "age", tmp_path, "compact", "published")
    assert [label[0::3] for label in got.labels] == [("33172", 3.0), ("6662", 2.0)]
    assert got.texts["compact"]["33172"] == [
        "days|weekday|small_group|amount",
        "+0d|Wed|Продуктовые магазины|68",
        "+723d|Fri|Сервис|47",
    ]
    assert got.texts["published"]["33172"] == [
        "scaled time|amount(rubles, scaled)|trx date|Merchant category codes",
        "6, 4.28, 2, Продуктовые магазины",
        "729, 3.83, 3, Сервис",
    ]
    assert got.texts["published"]["21717"][1] == "6, 6.92, 2, code 204"
    assert got.texts["published"]["6662"][1] == "6, 0.0, 2, Продуктовые магазины"


def test_mbd_has_a_history_for_each_reporting_month(spark: SparkSession, tmp_path: Path) -> None:
    columns = (
        "client_id, event_time, amount, event_type, event_subtype, currency, src_type11, src_type12, dst_type11, "
        "dst_type12, src_type21, src_type22, src_type31, src_type32"
    )
    for fold, month in ((0, "01"), (4, "02")):
        row = f"('a1', timestamp'2022-{month}-15 08:00:00', 120.5F, 54, 3, 11, 4, 7, 1, 2, null, null, 9, 8)"
        put_parquet(spark, tmp_path / "detail" / "trx" / f"fold={fold}", row, columns)
    targets = "('a1', '2022-02-28', 0, 1, 0, 0, 2, 3), ('a1', '2022-03-31', 1, 0, 0, 1, 2, 3)"
    names = "client_id, mon, target_1, target_2, target_3, target_4, trans_count, diff_trans_date"
    put_parquet(spark, tmp_path / "targets" / "fold=0", targets, names)
    got = read(spark, "mbd", tmp_path, "compact")
    march, february = dt.datetime(2022, 3, 1), dt.datetime(2022, 2, 1)
    assert got.labels == [
        ("a1", "acquiring", february, 0.0),
        ("a1", "acquiring", march, 1.0),
        ("a1", "card", february, 0.0),
        ("a1", "card", march, 1.0),
        ("a1", "credit", february, 1.0),
        ("a1", "credit", march, 0.0),
        ("a1", "payroll", february, 0.0),
        ("a1", "payroll", march, 0.0),
    ]
    assert got.attributes["a1"].fold == "0"
    # The last history of the client is that of March: both events, those of March itself left out.
    assert got.texts["compact"]["a1"][1:] == [
        "+0d|Sat|8h|e54|u3|a4|b7|c1|d2|-|-|h9|i8|120|11",
        "+31d|Tue|8h|e54|u3|a4|b7|c1|d2|-|-|h9|i8|120|11",
    ]


def test_x5(spark: SparkSession, tmp_path: Path) -> None:
    head = (
        "client_id,transaction_id,transaction_datetime,regular_points_received,express_points_received,"
        "regular_points_spent,express_points_spent,purchase_sum,store_id,product_id,product_quantity,"
        "trn_sum_from_iss,trn_sum_from_red\n"
    )
    put(
        tmp_path,
        purchases_csv=f"{head}c1,t1,2018-12-01 07:12:45,10.0,0.0,0.0,0.0,1007.0,54,p1,1.0,60.0,\n"
        "c1,t1,2018-12-01 07:12:45,10.0,0.0,0.0,0.0,1007.0,54,p9,2.0,10.0,\n"
        "c2,t2,2018-12-02 07:12:45,0.0,0.0,0.0,0.0,7.0,54,p1,1.0,7.0,\n"
        "c3,t3,2018-12-02 07:12:45,0.0,0.0,0.0,0.0,7.0,54,p1,1.0,7.0,\n",
        products_csv="product_id,level_1,level_2,level_3,level_4,segment_id,brand_id,vendor_id,netto,is_own_trademark,"
        "is_alcohol\np1,e344,ed2a,2cb1,4dd0,123.0,b1,v1,0.47,0,0\n",
        clients_csv="client_id,first_issue_date,first_redeem_date,age,gender\n"
        "c1,2017-08-05 15:40:48,2018-01-04 19:30:07,45,U\nc2,2017-04-10 13:54:23,,98,F\nc3,2017-04-10 13:54:23,,34,F\n",
    )
    got = read(spark, "x5", tmp_path, "compact")
    assert [label[0::3] for label in got.labels] == [("c1", 2.0), ("c3", 0.0)]  # 98 is no age
    header, *lines = got.texts["compact"]["c1"]
    assert header == "days|weekday|hour|level_1|level_2|level_3|level_4|segment|amount|quantity|netto"
    assert sorted(lines) == [
        "+0d|Sat|7h|-|-|-|-|-|10|q2|-",
        "+0d|Sat|7h|e344|ed2a|2cb1|4dd0|g123.0|56|q1|w0.47",
    ]


def test_alfa_has_no_dates(spark: SparkSession, tmp_path: Path) -> None:
    columns = (
        "app_id, amnt, currency, operation_kind, card_type, operation_type, operation_type_group, ecommerce_flag, "
        "payment_system, income_flag, mcc, country, city, mcc_category, day_of_week, hour, days_before, weekofyear, "
        "hour_diff, transaction_number"
    )
    rows = (
        "(1, 0.4654D, 1, 4, 98, 4, 2, 3, 7, 3, 2, 1, 37, 2, 4, 19, 351, 34, -1L, 1), "
        "(1, 0.2D, 1, 4, 98, 4, 2, 3, 7, 3, 2, 1, 37, 2, 4, 19, 351, 34, 0L, 2), "
        "(1, 0.3D, 1, 4, 98, 4, 2, 3, 7, 3, 2, 1, 37, 2, 1, 8, 0, 34, 8413L, 3), "
        "(1, 0.3D, 1, 4, 98, 4, 2, 3, 7, 3, 2, 1, 37, 2, 1, 24, 0, 34, 8413L, 4)"
    )
    put_parquet(spark, tmp_path / "train_transactions_contest", rows, columns)
    put_parquet(spark, tmp_path / "test_transactions_contest", rows.replace("(1, ", "(2, "), columns)
    put(tmp_path, alfabattle2_train_target_csv="app_id,product,flag\n1,3,1\n")
    got = read(spark, "alfa", tmp_path, "compact", "lines")
    assert got.quarantined == {"bad_time": 2}  # hour 24
    assert got.labels == [("1", "default", dt.datetime(2020, 1, 2), 1.0)]
    assert got.attributes["1"].product == "3"
    assert [row.event_id for row in got.events] == ["1", "2", "3"] * 2
    assert got.texts["compact"]["1"][1:] == [
        "+0d|19h|k4|t4|g2|c98|e3|p7|i3|m2|a2|l1|y37|d4|w34|0.47|1|h-1",
        "+0d|19h|k4|t4|g2|c98|e3|p7|i3|m2|a2|l1|y37|d4|w34|0.22|1|h0",
        "+351d|8h|k4|t4|g2|c98|e3|p7|i3|m2|a2|l1|y37|d1|w34|0.33|1|h8200",
    ]
    assert got.texts["lines"]["1"][0].startswith("days since the event before|hour|amount|currency|operation kind|")
    assert got.texts["lines"]["1"][3].startswith("+351d, 8h, 0.30, 1, 4, ")


def test_movielens_100k(spark: SparkSession, tmp_path: Path) -> None:
    flags = ["0"] * 19
    drama, comedy = list(flags), list(flags)
    drama[5] = drama[8] = comedy[5] = "1"
    items = [
        f"242|Kolya (1996)|24-Jan-1997||http://x|{'|'.join(drama)}",
        f'9|Misérables, "Les"|1||u|{"|".join(comedy)}',
    ]
    (tmp_path / "u.item").write_text("\n".join(items) + "\n", encoding="latin-1")
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n196\t9\t5\t881250949\n7\t242\t1\t881250950\n")
    (tmp_path / "u.user").write_text("196|49|M|writer|55105\n7|57|F|administrator|T8H1N\n")
    got = read(spark, "movielens_100k", tmp_path, "compact")
    as_of = dt.datetime(1998, 5, 1)
    assert got.labels == [
        ("196", "age", as_of, 49.0),
        ("196", "gender", as_of, 0.0),
        ("7", "age", as_of, 57.0),
        ("7", "gender", as_of, 1.0),
    ]
    # Both ratings are of one second: the lower item comes first.
    assert got.texts["compact"]["196"] == [
        "days|weekday|hour|movie|genres|rating",
        '+0d|Thu|15h|Misérables, "Les"|Comedy|r5',
        "+0d|Thu|15h|Kolya (1996)|Comedy Drama|r3",
    ]


def test_movielens_1m(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n2::73::4::978298413\n")
    movies = "1193::One Flew Over: the Cuckoo's Nest (1975)::Drama\n73::Misérables, Les (1995)::Drama|Musical\n"
    (tmp_path / "movies.dat").write_text(movies, encoding="latin-1")
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    got = read(spark, "movielens_1m", tmp_path, "compact")
    assert [label[:2] + label[3:] for label in got.labels] == [
        ("1", "age", 1.0),
        ("1", "gender", 1.0),
        ("2", "age", 56.0),
        ("2", "gender", 0.0),
    ]
    assert got.texts["compact"]["1"][1] == "+0d|Sun|22h|One Flew Over: the Cuckoo's Nest (1975)|Drama|r5"
    assert got.texts["compact"]["2"][1] == "+0d|Sun|21h|Misérables, Les (1995)|Drama Musical|r4"


def test_mimic_has_a_history_of_24_hours_for_each_stay(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "hosp").mkdir()
    put(
        tmp_path / "hosp",
        labevents_csv="labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,charttime,storetime,value,"
        "valuenum,valueuom,ref_range_lower,ref_range_upper,flag,priority,comments\n"
        "1,10,20,5,50931,P,2180-05-06 22:25:00,2180-05-06 23:16:00,109,109,mg/dL,70,100,abnormal,ROUTINE,\n"
        "2,10,20,5,50931,P,2180-05-07 22:24:00,,___,99,mg/dL,70,100,,ROUTINE,\n",
        prescriptions_csv="subject_id,hadm_id,pharmacy_id,poe_id,poe_seq,order_provider_id,starttime,stoptime,drug_type,"
        "drug,formulary_drug_cd,gsn,ndc,prod_strength,form_rx,dose_val_rx,dose_unit_rx,form_val_disp,form_unit_disp,"
        "doses_per_24_hrs,route\n"
        "10,20,1,a,1,P,2180-05-07 01:00:00,2180-05-07 22:00:00,MAIN,Furosemide,F,8,0,40mg,,40,mg,1,TAB,,PO/NG\n",
        d_labitems_csv="itemid,label,fluid,category\n50931,Glucose,Blood,Chemistry\n",
        patients_csv="subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod\n10,F,52,2180,2014 - 2016,\n",
        admissions_csv="subject_id,hadm_id,admittime,dischtime,deathtime,hospital_expire_flag\n"
        "10,20,2180-05-06 22:23:00,2180-05-09 17:15:00,2180-05-09 17:15:00,1\n",
    )
    got = read(spark, "mimic", tmp_path, "compact")
    assert got.labels == [("10", "mortality", dt.datetime(2180, 5, 7, 22, 23), 1.0)]
    assert (got.attributes["10"].gender, got.attributes["10"].age) == ("F", "52")
    assert got.texts["compact"]["10"] == [
        "days|weekday|hour|kind|laboratory|flag|unit|drug|route|value",
        "+0d|Sat|22h|laboratory|Glucose|abnormal|mg/dL|-|-|v100",
        "+1d|Sun|1h|prescription|-|-|-|Furosemide|PO/NG|-",
    ]


def test_berka_reads_both_samples(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "loan_course_split").mkdir()
    quoted = '"trans_id";"account_id";"date";"type";"operation";"amount";"balance";"k_symbol";"bank";"account"\n'
    put(
        tmp_path,
        trans_asc=f"{quoted}"
        '20;7;930105;"VYDAJ";"PREVOD NA UCET";1670.50;2929.50;"SIPO";"YZ";83084338\n'
        '19;7;930105;"PRIJEM";"VKLAD";4600.00;4600.00;"";;\n'
        '21;7;930131;"VYBER";"VYBER";100.00;2829.50;" ";;\n'
        '22;8;930131;"PRIJE',
        account_asc='"account_id";"district_id";"frequency";"date"\n7;55;"POPLATEK MESICNE";930101\n'
        '8;74;"POPLATEK TYDNE";930101\n25;68;"POPLATEK PO OBRATU";960728\n',
        loan_asc='"loan_id";"account_id";"date";"amount";"duration";"payments";"status"\n'
        '5314;7;930131;96396;12;8033.00;"B"\n5316;25;970103;165960;36;4610.00;"C"\n5317;9;970103;1;1;1.00;"A"\n',
    )
    put(
        tmp_path / "loan_course_split",
        trans_test_csv=quoted.replace('"', "")
        + "6330;25;961008;withdrawal;remittance to another bank;164.00;77035.50;insurrance payment;WX;52864879\n",
        loan_test_csv="loan_id;account_id;date;amount;duration;payments;status\n5895;25;970103;93960;60;1566;\n",
    )
    got = read(spark, "berka", tmp_path, "compact", "lines")
    assert got.quarantined == {"unclosed_quote": 1}
    # A loan is dated by its day; account 9 has no events, so it has no label.
    assert got.labels == [
        ("25", "bad_loan", dt.datetime(1997, 1, 3), 0.0),
        ("7", "bad_loan", dt.datetime(1993, 1, 31), 1.0),
    ]
    assert {client: row.sample for client, row in got.attributes.items()} == {"7": "trans", "25": "course"}
    assert (got.attributes["7"].frequency, got.attributes["7"].loan_duration) == ("monthly statement", "12")
    # Events before the loan alone, those of one day by their number.
    assert got.texts["compact"]["7"] == [
        "days|weekday|type|operation|purpose|partner_bank|amount|balance",
        "+0d|Tue|credit|credit in cash|-|-|4700|b4700",
        "+0d|Tue|withdrawal|remittance to another bank|household|YZ|-1800|b2700",
    ]
    assert got.texts["lines"]["25"][1:] == [
        "1996-10-08, -164.00, withdrawal, remittance to another bank, insurance payment, WX, 77035.5"
    ]


def test_online_retail_ii_computes_its_labels_from_events(spark: SparkSession, tmp_path: Path) -> None:
    rows = """
        ('489434', '85048', 'GLASS BALL ', 12L, '2009-12-01 07:45:00', 6.95D, 13085D, 'United Kingdom'),
        ('C489449', '22087', 'PAPER BUNTING', -12L, '2010-08-31 10:33:00', 2.95D, 13085D, 'Australia'),
        ('489450', '22087', 'PAPER BUNTING', 10L, '2010-09-01 00:00:00', 2.95D, 13085D, 'Australia'),
        ('489451', '22087', 'PAPER BUNTING', -4L, '2010-11-29 23:59:00', 2.95D, 13085D, 'Australia'),
        ('489452', '22087', 'PAPER BUNTING', 99L, '2010-11-30 00:00:00', 2.95D, 13085D, 'Australia'),
        ('489453', '22087', null, 1L, '2010-01-01 09:00:00', 0.0D, 7D, 'EIRE'),
        ('489454', '22087', 'NEW', 1L, '2010-10-01 09:00:00', 1.0D, 8D, 'EIRE'),
        ('A506401', 'B', 'Adjust bad debt', 1L, '2010-04-29 13:36:00', -53594.36D, double('nan'), 'United Kingdom')
    """
    names = "Invoice, StockCode, Description, Quantity, InvoiceDate, Price, `Customer ID`, Country"
    put_parquet(spark, tmp_path / "online_retail_II_2009_2010.parquet", rows, names)
    got = read(spark, "online_retail_ii", tmp_path, "compact")
    assert got.quarantined == {"no_client": 1}
    as_of = dt.datetime(2010, 9, 1)
    # 90 days from 1 September on end before 30 November; client 8 has no history before.
    assert [label[:3] for label in got.labels] == [
        ("13085", "buys_again", as_of),
        ("13085", "spend", as_of),
        ("7", "buys_again", as_of),
        ("7", "spend", as_of),
    ]
    assert [label[3] for label in got.labels] == pytest.approx([1.0, 17.7, 0.0, 0.0])
    assert got.texts["compact"]["13085"] == [
        "days|weekday|hour|item|entry|country|amount|quantity",
        "+0d|Tue|7h|GLASS BALL|-|United Kingdom|82|q12",
        "+273d|Tue|10h|PAPER BUNTING|cancellation|Australia|-33|q-12",
    ]


def test_every_spec_runs_as_the_default_pipeline() -> None:
    specs = sorted(file.name for file in shipped("datasets").glob("*.yaml"))
    assert len(specs) >= 12
    for name in (name for name in specs if load_spec(f"datasets/{name}").source):  # not those whose banks are made
        pipeline = load_pipeline(f"datasets/{name}", ["source.path=/data", "stages.evaluate.folds=3"])
        spec = pipeline.spec
        assert (pipeline.name, pipeline.conf.title) == (spec.name, spec.title)
        assert pipeline.conf.source == {"path": "/data"}
        settings = {stage.name: stage.conf.model_dump() for stage in pipeline.stages}
        assert settings["evaluate"]["folds"] == 3
        preset = spec.protocol.get("evaluate", {}).get("lightgbm", {}).get("preset")
        assert preset is None or settings["evaluate"]["lightgbm"]["preset"] == preset
        assert spec.split.share == 0.1 and spec.split.seed == 42
