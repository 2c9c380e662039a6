use std::fs;

use super::*;

fn columns() -> ColumnNames {
    ColumnNames::default()
}

/// A folder `slides` with these (empty) files, and a csv beside it.
struct Study(tempfile::TempDir);

impl Study {
    fn new(files: &[&str], csv: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join("slides").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        fs::write(root.path().join("labels.csv"), csv).unwrap();
        Self(root)
    }

    fn load_as(&self, slides: &str, columns: &ColumnNames, mpp: Option<Mpp>) -> Result<Cohort> {
        let at = |name: &str| self.0.path().join(name);
        Cohort::load(at(slides).to_str().unwrap(), Some(&at("labels.csv")), columns, mpp)
    }

    fn load(&self) -> Result<Cohort> {
        self.load_as("slides", &columns(), None)
    }

    fn message(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

fn ids(cohort: &Cohort) -> Vec<&str> {
    cohort.slides.iter().map(|slide| slide.id.as_str()).collect()
}

#[test]
fn a_cohort_with_everything() {
    let study = Study::new(
        &["b.svs", "deep/er/c.TIFF", "a.ndpi", "notes.txt", ".hidden.svs", "a/Slidedat.ini"],
        "case_id,slide_id,label,split,mpp\np1,a.ndpi,10,train,0.25\np1,b,9,VAL,\np2,c.svs,10,test,0.5\n",
    );
    let cohort = study.load_as("slides", &columns(), Some(Mpp(0.4))).unwrap();
    assert_eq!(ids(&cohort), ["a", "b", "c"]);
    assert_eq!(cohort.classes, ["9", "10"]);
    let fields: Vec<_> = cohort
        .slides
        .iter()
        .map(|s| (s.label, s.label_name.as_deref(), s.group.as_deref(), s.split, s.mpp.map(|m| m.0)))
        .collect();
    let expected = [
        (Some(1), Some("10"), Some("p1"), Some(Split::Train), Some(0.25)),
        (Some(0), Some("9"), Some("p1"), Some(Split::Val), Some(0.4)),
        (Some(1), Some("10"), Some("p2"), Some(Split::Test), Some(0.5)),
    ];
    assert_eq!(fields, expected);
    assert_eq!(cohort.problems, []);
    assert!(cohort.slides[2].path.ends_with("slides/deep/er/c.TIFF"));
}

#[test]
fn the_files_of_a_dicom_series_are_one_slide() {
    let study = Study::new(
        &["one/0.dcm", "one/1.dcm", "one/label.dcm", "two/a.dcm", "two/b.DCM", "two/c.dcm", "alone/x.dcm", "y.dcm"],
        "case_id,slide_id,label\np1,one,a\np1,one/1.dcm,a\np2,1.2.4,b\np3,two/b.DCM,b\np4,x.dcm,a\np5,y,b\n",
    );
    let series =
        [("one/0", 3), ("one/1", 3), ("one/label", 3), ("two/a", 4), ("two/b", 5), ("two/c", 4), ("alone/x", 3)];
    for (file, uid) in series {
        let file = study.0.path().join("slides").join(file);
        let file =
            if file.with_extension("DCM").exists() { file.with_extension("DCM") } else { file.with_extension("dcm") };
        fs::write(file, super::dicom_series::tests::of_series(&format!("1.2.{uid}"))).unwrap();
    }
    let cohort = study.load().unwrap();
    // One folder holds a single series and gives its name; the same series elsewhere is another slide.
    assert_eq!(ids(&cohort), ["x", "one", "a", "b", "y"]);
    assert_eq!(cohort.problems, []);
    let files: Vec<_> = cohort.slides.iter().map(|slide| slide.path.strip_prefix(study.0.path()).unwrap()).collect();
    let expected = ["slides/alone/x.dcm", "slides/one/0.dcm", "slides/two/a.dcm", "slides/two/b.DCM", "slides/y.dcm"];
    assert_eq!(files, expected.map(Path::new));
    assert_eq!(cohort.slides.iter().map(|slide| slide.label.unwrap()).collect::<Vec<_>>(), [0, 0, 1, 1, 1]);
    let all = study.0.path().join("slides/one/*.dcm");
    let all = Cohort::load(all.to_str().unwrap(), None, &columns(), None).unwrap();
    assert_eq!(ids(&all), ["0"]);
}

#[test]
fn columns_may_have_other_names_and_optional_ones_be_absent() {
    let study = Study::new(&["x.tiff"], "\u{feff}image_id;isup_grade\nx;3\n");
    let names = ColumnNames { slide: "image_id".into(), label: "isup_grade".into(), ..columns() };
    let cohort = study.load_as("slides", &names, None).unwrap();
    let slide = &cohort.slides[0];
    assert_eq!((slide.label, &slide.group, slide.split, slide.mpp), (Some(0), &None, None, None));
    // No label column wanted at all.
    let names = ColumnNames { label: String::new(), ..names };
    let cohort = study.load_as("slides", &names, None).unwrap();
    assert_eq!((cohort.slides[0].label, cohort.classes.len(), cohort.problems.len()), (None, 0, 0));
}

#[test]
fn without_a_csv_slides_have_no_labels() {
    let study = Study::new(&["a.svs", "b.svs"], "");
    let slides = study.0.path().join("slides");
    let cohort = Cohort::load(slides.to_str().unwrap(), None, &columns(), Some(Mpp(0.5))).unwrap();
    assert_eq!((ids(&cohort), cohort.slides[1].mpp), (vec!["a", "b"], Some(Mpp(0.5))));
    let one = Cohort::load(slides.join("b.svs").to_str().unwrap(), None, &columns(), None).unwrap();
    assert_eq!(ids(&one), ["b"]);
}

#[test]
fn what_is_left_over_is_noted_and_kept() {
    let study = Study::new(&["a.svs", "b.svs", "c.svs"], "slide_id,label\na,x\ngone,y\nc,\n");
    let cohort = study.load().unwrap();
    assert_eq!(ids(&cohort), ["a", "b", "c"]);
    assert_eq!(cohort.classes, ["x"]);
    let problems: Vec<_> = cohort.problems.iter().map(|p| (p.item.as_str(), p.reason.as_str())).collect();
    assert_eq!(problems[0].0, "gone");
    assert!(problems[0].1.starts_with("line 3 of ") && problems[0].1.contains("no such slide"));
    assert!(problems[1].0 == "b" && problems[1].1.contains("not in "));
    assert!(problems[2].0 == "c" && problems[2].1.contains("no label given"));
}

#[test]
fn slides_of_one_name_are_told_apart_by_their_paths() {
    let study = Study::new(&["s1/x.svs", "s2/x.svs", "y.svs"], "slide_id,label\ns1/x,a\ns2/x.svs,b\ny,a\n");
    let cohort = study.load().unwrap();
    assert_eq!(ids(&cohort), ["s1__x.svs", "s2__x.svs", "y"]);
    assert_eq!(cohort.slides.iter().map(|s| s.label).collect::<Vec<_>>(), [Some(0), Some(1), Some(0)]);
    let unclear = Study::new(&["s1/x.svs", "s2/x.svs"], "slide_id,label\nx,a\n").message();
    assert!(unclear.contains("may be any of s1/x.svs, s2/x.svs"), "{unclear}");
}

#[test]
fn globs_take_any_extension() {
    let study = Study::new(&["a.xyz", "deep/b.xyz", "c.svs"], "slide_id,label\na,x\n");
    assert_eq!(ids(&study.load_as("slides/*.xyz", &columns(), None).unwrap()), ["a"]);
    assert_eq!(ids(&study.load_as("slides/**/*.xyz", &columns(), None).unwrap()), ["a", "b"]);
    assert_eq!(ids(&study.load_as("slides/{a,c}.*", &columns(), None).unwrap()), ["a", "c"]);
    let none = study.load_as("slides/*.nothing", &columns(), None).unwrap_err().to_string();
    assert!(none.contains("no file matches"), "{none}");
    let nowhere = study.load_as("nowhere/*.svs", &columns(), None).unwrap_err().to_string();
    assert!(nowhere.contains("there is no folder"), "{nowhere}");
}

#[test]
fn folders_without_slides_are_errors() {
    let study = Study::new(&["notes.txt"], "slide_id,label\na,x\n");
    assert!(study.message().contains("no slides in this folder"));
    assert!(study.load_as("gone", &columns(), None).unwrap_err().to_string().contains("no such folder or file"));
    assert!(Cohort::load("", None, &columns(), None).unwrap_err().to_string().contains("data.slides is empty"));
}

#[test]
fn wrong_csvs_are_errors_that_say_what_to_do() {
    let message = |csv: &str| Study::new(&["a.svs", "b.svs"], csv).message();
    let columns = message("slide_id,lable,group\na,x,1\n");
    assert!(
        columns.contains("no column \"label\"") && columns.contains("\"slide_id\", \"lable\", \"group\""),
        "{columns}"
    );
    assert!(columns.contains("data.columns.label") && columns.contains("perhaps \"lable\""), "{columns}");
    assert!(message("id,label\na,x\n").contains("data.columns.slide"));
    let twice = message("slide_id,label\na,x\nb,x\na.svs,y\n");
    assert!(twice.contains("lines 2 and 4") && twice.contains("different labels"), "{twice}");
    assert!(message("slide_id,label,split\na,x,train\na,x,test\n").contains("different splits"));
    assert!(message("slide_id,label,mpp\na,x,fine\n").contains("line 2: \"fine\" is no µm/px"));
    assert!(message("slide_id,label,mpp\na,x,-0.5\n").contains("no µm/px"));
    assert!(message("slide_id,label,split\na,x,holdout\n").contains("neither train, val nor test"));
    assert!(message("slide_id,label\nq,x\nr,y\n").contains("none of its 2 rows"));
    assert!(message("slide_id,label\n").contains("no rows"));
    assert!(message("").contains("it is empty"));
    let named = |columns: ColumnNames| {
        Study::new(&["a.svs"], "slide_id,label,patient\na,x,p\n").load_as("slides", &columns, None)
    };
    let group = |name: &str| ColumnNames { group: name.into(), ..ColumnNames::default() };
    assert!(named(group("patient_id")).unwrap_err().to_string().contains("no column \"patient_id\""));
    assert!(named(group("")).is_ok() && named(ColumnNames::default()).is_ok());
    assert!(message("slide_id,label,label\na,x,y\n").contains("two columns \"label\""));
    assert!(message("slide_id,label\na\n").contains("labels.csv"));
    let study = Study::new(&["a.svs"], "");
    fs::write(study.0.path().join("labels.csv"), b"slide_id,label\na,\xff\xfe\n").unwrap();
    assert!(study.message().contains("UTF-8"));
    assert!(study.load_as("slides", &self::columns(), Some(Mpp(f64::NAN))).is_err());
}

#[test]
fn classes_may_be_given_an_order() {
    let study = Study::new(&["a.svs", "b.svs", "c.svs"], "slide_id,label\na,low\nb,high\nc,low\n");
    let ordered =
        |names: &[&str]| study.load().unwrap().with_classes(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>());
    let labels = |cohort: &Cohort| cohort.slides.iter().map(|slide| slide.label).collect::<Vec<_>>();
    assert_eq!(labels(&study.load().unwrap()), [Some(1), Some(0), Some(1)]);
    let cohort = ordered(&["none", "low", "high"]).unwrap();
    assert_eq!(
        (labels(&cohort), &cohort.classes[..]),
        (vec![Some(0), Some(1), Some(0)], &["low", "high"].map(String::from)[..])
    );
    assert!(ordered(&["low", "middle"]).unwrap_err().to_string().contains("class \"high\""));
    assert!(ordered(&["low", "high", "low"]).unwrap_err().to_string().contains("named twice"));
}

#[test]
fn a_slide_may_stand_in_two_rows_that_agree() {
    let study = Study::new(&["a.svs"], "slide_id,label\na,x\na.svs,x\n");
    let cohort = study.load().unwrap();
    assert_eq!((cohort.slides.len(), cohort.problems.len()), (1, 0));
}
