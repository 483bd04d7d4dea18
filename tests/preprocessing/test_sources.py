import json

import pytest

from brain_ldm.errors import InputError
from brain_ldm.preprocessing.config import Layout, PreprocessConfig, Scans
from brain_ldm.preprocessing.sources import find_scans


@pytest.fixture
def source(tmp_path):
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def put(source, *names):
    """Files that are found by name alone."""
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"")


def table(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).replace("  ", "\t" if path.suffix == ".tsv" else ",") + "\n")
    return str(path)


def find(source, **options):
    return find_scans(PreprocessConfig(source=str(source), **options))


def rows(found):
    return {s.participant_id: s.row for s in found.scans}


def mistake(source, **options):
    with pytest.raises(InputError) as told:
        find(source, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


def bids(source, *subjects):
    put(source, *(f"sub-{s}/anat/sub-{s}_T1w.nii.gz" for s in subjects))


class TestBids:
    def test_ages_and_sexes_come_from_participants(self, source):
        bids(source, "02", "01", "03")
        put(source, "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz")
        table(
            source / "participants.tsv",
            "participant_id  Age  gender  site",
            "sub-01  61.5  Female  A",
            "sub-02  n/a  m  B",
            "sub-09  70  F  C",
        )
        found = find(source)
        assert found.layout is Layout.bids
        assert [s.participant_id for s in found.scans] == ["sub-01", "sub-02", "sub-03"]
        assert [s.subject for s in found.scans] == ["sub-01", "sub-02", "sub-03"]
        assert rows(found) == {
            "sub-01": {"age": 61.5, "sex": "F"},
            "sub-02": {"sex": "M"},
            "sub-03": {},
        }
        problems = [s.problem for s in found.scans]
        assert problems == [None, None, "no row in participants.tsv"]
        assert found.notes == [
            "1 of 3 scans have no row in participants.tsv",
            "1 rows of participants.tsv have no scan",
            "1 scans have no age",
        ]
        assert list(found.extra_columns) == ["subject"]

    def test_sessions_have_ages_of_their_own(self, source):
        put(
            source,
            *(f"sub-7/ses-{s}/anat/sub-7_ses-{s}_run-{r}_T1w.nii" for s in "ab" for r in (1, 2)),
            "sub-8/ses-a/anat/sub-8_ses-a_T1w.nii.gz",
        )
        table(
            source / "participants.tsv", "participant_id  sex  age", "sub-7  F  60", "sub-8  M  5"
        )
        table(source / "sub-7/sub-7_sessions.tsv", "session_id  age", "ses-a  60.2", "ses-b  n/a")
        found = find(source)
        # An age that is missing at a session is not that of another.
        assert rows(found) == {
            "sub-7sesarun1": {"session": "a", "sex": "F", "age": 60.2},
            "sub-7sesarun2": {"session": "a", "sex": "F", "age": 60.2},
            "sub-7sesbrun1": {"session": "b", "sex": "F"},
            "sub-7sesbrun2": {"session": "b", "sex": "F"},
            "sub-8sesa": {"session": "a", "sex": "M", "age": 5},
        }
        assert {s.subject for s in found.scans} == {"sub-7", "sub-8"}
        assert list(found.extra_columns) == ["subject", "session"]
        first = find(source, scans=Scans.first)
        assert list(rows(first)) == ["sub-7sesarun1", "sub-8sesa"]
        assert "3 later scans are left out (scans=first)" in first.notes

    def test_one_age_for_several_sessions_is_told(self, source):
        put(source, *(f"sub-7/ses-{s}/anat/sub-7_ses-{s}_T1w.nii" for s in "ab"))
        table(source / "participants.tsv", "participant_id  age", "sub-7  60")
        assert any("1 subjects have one age for all" in note for note in find(source).notes)

    def test_first_is_by_number(self, source):
        put(source, *(f"sub-1/anat/sub-1_run-{r}_T1w.nii" for r in (10, 9)))
        put(source, *(f"sub-2/ses-{s}/anat/sub-2_ses-{s}_T1w.nii" for s in ("d100", "d20")))
        assert list(rows(find(source, scans=Scans.first))) == ["sub-1run9", "sub-2sesd20"]

    def test_ids_stay_when_scans_arrive(self, source):
        put(source, "sub-1/ses-1/anat/sub-1_ses-1_acq-x_T1w.nii.gz")
        before = find(source).scans
        put(source, "sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz")
        put(source, "sub-1/ses-1/anat/sub-1_ses-1_acq-y_T1w.nii.gz")
        after = find(source).scans
        assert [s.participant_id for s in before] == ["sub-1ses1acqx"]
        assert len(after) == 3 and before[0] in after

    def test_a_table_by_session_as_oasis_3_has_it(self, source, tmp_path):
        for subject, days in (("OAS30001", "0129"), ("OAS30001", "0757"), ("OAS30002", "0371")):
            name = f"sub-{subject}_ses-d{days}"
            put(source, f"sub-{subject}/ses-d{days}/anat/{name}_run-01_T1w.nii.gz")
        sessions = table(
            tmp_path / "mr_sessions.csv",
            "MR ID  Subject  M/F  Age  Scans",
            "OAS30001_MR_d0129  OAS30001  F  65  T1w(2)",
            "OAS30001_MR_d0757  OAS30001  F  67  T1w(2)",
            "OAS30002_MR_d9999  OAS30002  M  67  T1w(1)",
        )
        columns = {"participant_id": "Subject", "session": "MR ID", "sex": "M/F", "age": "Age"}
        found = find(source, table=sessions, columns=columns)
        assert rows(found) == {
            "sub-OAS30001sesd0129run01": {"session": "d0129", "sex": "F", "age": 65},
            "sub-OAS30001sesd0757run01": {"session": "d0757", "sex": "F", "age": 67},
            "sub-OAS30002sesd0371run01": {"session": "d0371"},
        }
        assert found.scans[2].problem == "no row in mr_sessions.csv for session d0371"
        assert not any("one age" in note for note in found.notes)

    def test_without_a_table_there_are_no_covariates(self, source):
        bids(source, "1")
        found = find(source)
        assert [s.problem for s in found.scans] == [None]
        assert "participants.tsv is not there: no covariates" in found.notes[0]

    def test_links_to_nowhere_are_scans_still(self, source):
        bids(source, "1")
        link = source / "sub-2/anat/sub-2_T1w.nii.gz"
        link.parent.mkdir(parents=True)
        link.symlink_to(source / "annex")
        assert list(rows(find(source))) == ["sub-1", "sub-2"]

    def test_numbers_agree_without_their_zeros(self, source, tmp_path):
        bids(source, "001", "02")
        ages = table(tmp_path / "t.csv", "participant_id  age", "1  50", "2.0  60")
        assert rows(find(source, table=ages)) == {"sub-001": {"age": 50}, "sub-02": {"age": 60}}
        bids(source, "1")
        assert "'s or " in mistake(source, table=ages)

    def test_two_files_of_one_name_are_refused(self, source):
        bids(source, "1")
        put(source, "sub-1/anat/sub-1_T1w.nii")
        assert "would both be sub-1; remove one" in mistake(source)
        assert "would both be sub-1; remove one" in mistake(source, scans=Scans.first)

    def test_spellings_that_collide_are_refused(self, source):
        bids(source, "a.b", "ab")
        assert "would both be sub-ab" in mistake(source)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ("sub-01  sixty  F", r"row 1 \(01\), column age: 'sixty' is no number; give it in years"),
        ("sub-01  090Y  F", r"'090Y' is no number"),
        ("sub-01  -9  F", r"-9 is not within 0 to 120 years; mend it, or give n/a"),
        ("sub-01  inf  F", r"not within"),
        ("sub-01  60  2", r"column sex: '2' is no known sex; say what it means, 'sexes=\{2: F\}'"),
        ("sub-01  60  other", r"'other' is no known sex"),
    ],
)
def test_values_that_make_no_sense_are_named(source, cells, told):
    bids(source, "01")
    path = table(source / "participants.tsv", "participant_id  age  sex", cells)
    with pytest.raises(InputError, match=told) as error:
        find(source)
    assert str(error.value).startswith(path)


def test_sexes_say_what_codes_mean(source):
    bids(source, "1", "2", "3")
    lines = ("participant_id  sex", "1  1", "2  2.0", "3  0")
    table(source / "participants.tsv", *lines)
    found = rows(find(source, sexes={1: "M", 2: "female", 0: "n/a"}))
    assert found == {"sub-1": {"sex": "M"}, "sub-2": {"sex": "F"}, "sub-3": {}}
    assert "sexes.1: 'man'; give F, M or n/a" in mistake(source, sexes={1: "man"})
    assert "sexes: 'M'" in mistake(source, sexes="M")


def test_columns_of_one_s_own_become_the_cohort_s(source):
    bids(source, "1", "2")
    lines = ("participant_id  Edu  dx  eTIV", "1  16  AD  1500.5", "2  n/a  n/a  1400")
    table(source / "participants.tsv", *lines)
    found = find(source, columns={"education": "Edu", "diagnosis": "dx", "etiv": "eTIV"})
    assert rows(found)["sub-1"] == {"education": 16, "diagnosis": "AD", "etiv": 1500.5}
    assert rows(found)["sub-2"] == {"etiv": 1400}
    assert found.extra_columns["education"] == {"Description": "Column Edu of participants.tsv"}
    json.dumps(found.extra_columns)
    assert "no column Educ (columns.education); it has Edu" in mistake(
        source, columns={"education": "Educ"}
    )
    assert "columns.split: preprocess makes" in mistake(source, columns={"split": "dx"})
    assert "columns.my-age" in mistake(source, columns={"my-age": "dx"})


def test_volumes_in_ml_are_told(source):
    bids(source, "1")
    table(source / "participants.tsv", "participant_id  ventricular_volume", "1  25.5")
    assert "a ventricular_volume outside 500 to 500,000 mm³" in " ".join(find(source).notes)


def test_rows_that_contradict_each_other_are_refused_and_others_not(source):
    bids(source, "1", "2")
    path = source / "participants.tsv"
    lines = ("1  60  F", "1  n/a  F", "2  50  M", "7  1  F", "7  2  F")
    table(path, "participant_id  age  sex", *lines)
    found = rows(find(source))
    assert found == {"sub-1": {"age": 60, "sex": "F"}, "sub-2": {"age": 50, "sex": "M"}}
    table(path, "participant_id  age", "1  60", "1  61", "2  50", "2  51")
    told = mistake(source)
    assert "rows 1 and 2 say 60 and 61 in age, both for sub-1_T1w.nii.gz (1 more such" in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no header"),
        ("participant_id\tage\n1\t60\n".encode("utf-16"), "save it as CSV"),
        (b"subject\tage\n1\t60\n", "no column participant_id; say which it is"),
        (b"participant_id\tage\n9\t60\n", "none of its 1 rows belongs to a"),
        (b"participant_id\tage\n", "none of its 0 rows belongs to a"),
        (b"participant_id\tAge\tAGE_AT_SCAN\n1\t6\t6\n", "age may be Age or AGE"),
        (b'participant_id\tage\n1\t"6\n', "not a readable table"),
        (b"participant_id,name,age,sex\n2,A,5,F\n1,B,Junior,60,F\n", "row 2 has more fields than"),
    ],
)
def test_tables_that_cannot_be_used_are_told(source, content, told):
    bids(source, "1")
    (source / "participants.tsv").write_bytes(content)
    assert told in mistake(source)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_of_any_separator_with_excel_s_mark(source, tmp_path, separator):
    bids(source, "1")
    lines = [["participant_id", '"sex (1=m, 2=f)"', "age"], ["1", "2", "61.5"]]
    path = tmp_path / "t.csv"
    text = "\r\n".join(separator.join(line) for line in lines)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = find(source, table=str(path), columns={"sex": "sex (1=m, 2=f)"}, sexes={2: "F"})
    assert rows(found) == {"sub-1": {"sex": "F", "age": 61.5}}


FIELDS = ((31, 0), (21003, 0), (21003, 2), (21003, 3), (25004, 2), (25009, 2))
UKB_TABLES = {
    "csv": ("eid", *(f"{field}-{at}.0" for field, at in FIELDS)),
    "r": ("f.eid", *(f"f.{field}.{at}.0" for field, at in FIELDS)),
    "rap": ("eid", "p31", *(f"p{field}_i{at}" for field, at in FIELDS[1:])),
}
UKB_TABLES["entity"] = tuple(f"participant.{name}" for name in UKB_TABLES["rap"])


class TestUkBiobank:
    @pytest.mark.parametrize("style", UKB_TABLES)
    def test_fields_are_those_of_the_scan_s_visit(self, source, tmp_path, style):
        put(source, "10/1000010_20252_2_0.zip", "11/1000010_20252_3_0.zip")
        put(source, "10/1000025_20252_2_0.zip", "10/1000033_20252_2_0.zip")
        put(source, "10/1000010_20253_2_0.zip", "10/1000010_20252_2_0.zip.part")
        fields = table(
            tmp_path / "fields.csv",
            "  ".join(UKB_TABLES[style]),
            "1000010  0  51  60  63  25004.5  1500000",
            "1000025  Male  40  49    31000  1450000",
            "1000041  1  40  49    31000  1450000",
        )
        found = find(source, table=fields)
        assert found.layout is Layout.ukb
        assert rows(found) == {
            "sub-1000010ses2": {
                "session": "2",
                "sex": "F",
                "age": 60,
                "ventricular_volume": 25004.5,
                "brain_volume": 1500000,
            },
            "sub-1000010ses3": {"session": "3", "sex": "F", "age": 63},
            "sub-1000025ses2": {
                "session": "2",
                "sex": "M",
                "age": 49,
                "ventricular_volume": 31000,
                "brain_volume": 1450000,
            },
            "sub-1000033ses2": {"session": "2"},
        }
        assert [s.subject for s in found.scans[:2]] == ["sub-1000010"] * 2
        assert {s.member for s in found.scans} == {"T1/T1.nii.gz"}
        assert found.scans[3].problem == "no row in fields.csv"
        assert "1 rows of fields.csv have no scan" in found.notes
        assert "fields.csv has no field 25004 (ventricular_volume) at instance 3" in found.notes
        assert list(rows(find(source, table=fields, scans=Scans.first))) == [
            "sub-1000010ses2",
            "sub-1000025ses2",
            "sub-1000033ses2",
        ]

    def test_further_fields_are_read_at_the_visit(self, source):
        put(source, "1000010_20252_2_0.zip", "1000010_20252_3_0.zip")
        table(
            source / "fields.csv",
            "eid  21003-2.0  21001-0.0  21001-2.0  21001-2.1  6138-0.0",
            "1000010  60  24.0  25.5  99  3",
        )
        found = find(source, columns={"bmi": "21001", "schooling": "6138-0.0"})
        assert rows(found)["sub-1000010ses2"]["bmi"] == 25.5
        assert "bmi" not in rows(found)["sub-1000010ses3"]
        assert rows(found)["sub-1000010ses3"]["schooling"] == 3
        assert "no column of field 21002" in mistake(source, columns={"bmi": "21002"})
        assert "columns.session: not for layout ukb" in mistake(source, columns={"session": "eid"})

    def test_a_table_of_another_application_is_told(self, source):
        put(source, "1000010_20252_2_0.zip")
        table(source / "fields.csv", "eid  31-0.0", "5000010  0")
        assert "none of its 1 rows belongs to a scan; scans are such as '1000010'" in mistake(
            source
        )
        table(source / "fields.csv", "id  31-0.0", "5000010  0")
        assert "no column eid (participant_id); it has id, …" in mistake(source)

    def test_a_header_may_have_any_length(self, source):
        put(source, "1000010_20252_2_0.zip")
        further = ",".join(f"{n}-0.0" for n in range(40000, 70000))
        (source / "t.csv").write_text(f"eid,31-0.0,{further}\n1000010,1{',' * 30000}\n")
        assert rows(find(source)) == {"sub-1000010ses2": {"session": "2", "sex": "M"}}

    def test_a_scan_that_lies_twice_is_refused(self, source):
        put(source, "a/1000010_20252_2_0.zip", "b/1000010_20252_2_0.zip")
        table(source / "fields.csv", "eid  31-0.0", "1000010  0")
        assert "would both be sub-1000010ses2; remove one" in mistake(source)

    def test_wide_tables_are_read_piece_by_piece(self, source, monkeypatch):
        monkeypatch.setattr("brain_ldm.preprocessing.tables.CELLS_AT_ONCE", 1)
        put(source, "1002500_20252_2_0.zip")
        lines = [f"{1000000 + i},{i % 2},{40 + i % 40}," + "," * 50 for i in range(3000)]
        header = "eid,31-0.0,21003-2.0," + ",".join(f"{n}-0.0" for n in range(40000, 40051))
        (source / "t.csv").write_text("\n".join([header, *lines]))
        found = find(source)
        assert rows(found) == {"sub-1002500ses2": {"session": "2", "sex": "F", "age": 60}}
        assert "2999 rows of t.csv have no scan" in found.notes
        assert header.count(",") == lines[0].count(",")
        lines[2500] = lines[2500].replace(",60,", ",x,")
        (source / "t.csv").write_text("\n".join([header, *lines]))
        assert "row 2501 (1002500), column 21003-2.0: 'x' is no number" in mistake(source)


class TestFolder:
    def test_ixi(self, source, tmp_path):
        put(source, *(f"IXI{n}-T1.nii.gz" for n in ("002-Guys-0828", "012-HH-1211", "013-HH-1212")))
        put(source, "IXI002-Guys-0828-T2.nii.gz")
        ixi = tmp_path / "IXI.csv"
        ixi.write_text(
            'IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,AGE\n2,2,164,35.8\n12,1,175,38.78\n'
            "12,0,0,\n13,1,182,\n14,2,163,34.24\n"
        )
        found = find(
            source,
            table=str(ixi),
            columns={"participant_id": "IXI_ID", "age": "AGE", "sex": "SEX_ID (1=m, 2=f)"},
            sexes={1: "M", 2: "F", 0: "n/a"},
            pattern=r"IXI(?P<id>\d+)-.*-T1\.nii",
        )
        assert found.layout is Layout.folder
        assert rows(found) == {
            "sub-002": {"age": 35.8, "sex": "F"},
            "sub-012": {"age": 38.78, "sex": "M"},
            "sub-013": {"sex": "M"},
        }
        assert found.notes == [
            "1 NIfTI files are not of the pattern",
            "1 rows of IXI.csv have no scan",
            "1 scans have no age",
        ]

    def test_oasis_1(self, source):
        names = ("0001_MR1_mpr-1", "0001_MR1_mpr-2", "0028_MR1_mpr-1", "0028_MR2_mpr-1")
        put(source, *(f"disc1/OAS1_{n}_anon.nii.gz" for n in names))
        table(
            source / "oasis.csv",
            "ID  M/F  Hand  Age  Educ",
            "OAS1_0001_MR1  F  R  74  2",
            "OAS1_0028_MR1  F  R  86  ",
            "OAS1_0028_MR2  F  R  86  ",
        )
        options = {
            "columns": {"participant_id": "ID", "age": "Age", "sex": "M/F"},
            "pattern": r"(?P<id>(?P<subject>OAS1_\d+)_MR(?P<session>\d))_mpr-(?P<run>\d)",
        }
        found = find(source, **options)
        assert [(s.participant_id, s.subject) for s in found.scans] == [
            ("sub-OAS10001ses1run1", "sub-OAS10001"),
            ("sub-OAS10001ses1run2", "sub-OAS10001"),
            ("sub-OAS10028ses1run1", "sub-OAS10028"),
            ("sub-OAS10028ses2run1", "sub-OAS10028"),
        ]
        assert rows(found)["sub-OAS10028ses2run1"] == {"session": "2", "age": 86, "sex": "F"}
        first = find(source, scans=Scans.first, **options)
        assert list(rows(first)) == ["sub-OAS10001ses1run1", "sub-OAS10028ses1run1"]

    def test_names_begin_with_ids(self, source):
        put(source, "a/S_1_T1.nii.gz", "a/S_10_T1.nii", "b/S_2.nii.gz", "b/T_2.nii.gz")
        put(source, ".hidden/S_3.nii.gz", "b/._S_2.nii.gz")
        table(source / "t.csv", "participant_id  age", "S_1  51", "S_10  60", "S_2  52", "S  9")
        found = find(source)
        assert rows(found) == {
            "sub-S1": {"age": 51},
            "sub-S10": {"age": 60},
            "sub-S2": {"age": 52},
            "sub-T2": {},
        }
        assert found.scans[3].problem == "no row in t.csv"
        put(source, "c/S_1_again.nii.gz")
        told = mistake(source)
        assert "S_1_T1.nii.gz and " in told and "groups session or run of pattern" in told
        assert mistake(source, scans=Scans.first) == told

    def test_a_table_names_files(self, source):
        put(source, "x/a.nii.gz", "x/b.nii.gz", "y/c.nii", "y/other.nii")
        table(
            source / "t.csv",
            "participant_id  session  file  age",
            "P-1  0  x/a.nii.gz  51",
            f"P-1  12  {source}/x/b.nii.gz  52",
            "P-2  0  c.nii  60",
            "P-3  0  absent.nii  60",
        )
        found = find(source)
        assert rows(found) == {
            "sub-P1ses0": {"session": "0", "age": 51},
            "sub-P1ses12": {"session": "12", "age": 52},
            "sub-P2ses0": {"session": "0", "age": 60},
        }
        assert found.notes == [
            "1 NIfTI files are in no row of t.csv",
            "1 rows of t.csv have no scan",
            "3 scans have no sex",
        ]
        table(source / "t.csv", "file  age", "x/a.nii.gz  51", "c.nii  60")
        assert rows(find(source)) == {"sub-a": {"age": 51}, "sub-c": {"age": 60}}
        put(source, "z/c.nii")
        assert "row 2: 2 files are called c.nii; give the path" in mistake(source)
        table(source / "t.csv", "file  age", "d.nii  51")
        assert "no row names a file there, such as x/a.nii.gz" in mistake(source)

    def test_rows_by_session_need_sessions_in_the_pattern(self, source):
        put(source, "P1_s1.nii", "P1_s2.nii")
        table(source / "t.csv", "participant_id  session  age", "P1  s1  50", "P1  s2  52")
        pattern = r"(?P<id>P\d+)_(?P<run>s\d)"
        assert "group session of pattern" in mistake(source, pattern=pattern)
        found = find(source, pattern=pattern.replace("run", "session"))
        assert [r["age"] for r in rows(found).values()] == [50, 52]

    @pytest.mark.parametrize(
        ("pattern", "told"),
        [
            ("(", "not a regular expression"),
            ("sub", "give it a group (?P<id>…)"),
            ("(?P<id>x)(?P<visit>y)?", "no others than subject, session and run"),
            ("(?P<id>x)", "is in no file's path, such as P1.nii"),
            ("(?P<id>P)", "none of its 1 rows belongs to a scan; scans are such as 'P'"),
        ],
    )
    def test_patterns_that_cannot_work(self, source, pattern, told):
        put(source, "P1.nii")
        table(source / "t.csv", "participant_id  age", "P1  50")
        assert told in mistake(source, pattern=pattern)

    def test_which_table_must_be_clear(self, source):
        put(source, "P1.nii")
        assert "no CSV or TSV lies there" in mistake(source)
        table(source / "a.csv", "participant_id", "P1")
        assert list(rows(find(source))) == ["sub-P1"]
        table(source / "b.tsv", "participant_id", "P1")
        assert "several tables lie there (a.csv, b.tsv); say which" in mistake(source)
        assert "no such table" in mistake(source, table=str(source / "c.csv"))

    def test_linked_folders_are_followed_once(self, source, tmp_path):
        put(tmp_path / "disk", "P1.nii")
        (source / "link").symlink_to(tmp_path / "disk")
        (tmp_path / "disk" / "back").symlink_to(source)
        table(source / "a.csv", "participant_id", "P1")
        assert [s.path.name for s in find(source).scans] == ["P1.nii"]


def test_where_nothing_lies_nothing_is_found(source, tmp_path):
    assert "no such folder" in mistake(tmp_path / "absent")
    assert "no scans; expected sub-*/" in mistake(source)
    put(source, "a.nii")
    assert "no scans of layout bids" in mistake(source, layout=Layout.bids)
    bids(source, "1")
    assert "pattern: not for layout bids" in mistake(source, pattern="(?P<id>x)")
