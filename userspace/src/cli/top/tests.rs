use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use ratatui::crossterm::event::KeyCode;

use super::{amount, frame, text};
use crate::{
    api::v1::{LiveFlow, Outcome},
    cli::top::model::{Group, Model, Sort},
};

fn flow(caller: &str, to: (&str, &str, u16), outcome: Outcome) -> LiveFlow {
    let (service, node, port) = to;
    LiveFlow {
        caller: caller.to_owned(),
        destination: format!("10.99.0.20:{port}"),
        node: node.to_owned(),
        service: service.to_owned(),
        outcome: outcome.into(),
        ..LiveFlow::default()
    }
}

/// What there is at first, and so many seconds later.
fn flows(later: u64) -> Vec<LiveFlow> {
    let fortune = LiveFlow {
        connections: 950 + later * 120,
        open: 3,
        sent: 12_000 + later * 1_500,
        received: 900_000 + later * 2_400_000,
        round_trip_us: Some(220),
        ..flow("host/fcc00/shop.service", ("fortune", "fcs00", 8181), Outcome::Allowed)
    };
    let archive = LiveFlow {
        connections: 1,
        open: 1,
        sent: 88_000_000 + later * 51_000_000,
        received: 4_000,
        round_trip_us: Some(31_400),
        rule: Some(4),
        ..flow("host/fcc00/backup.service", ("archive", "fcs01", 9000), Outcome::Allowed)
    };
    let nobody = LiveFlow {
        connections: 7,
        idle_seconds: 60,
        ..flow("host/fcc00/user-root", ("", "fcs01", 8000), Outcome::Allowed)
    };
    let denied = LiveFlow {
        connections: 3 + later * 2,
        idle_seconds: 1,
        rule: Some(7),
        ..flow("host/fcc00/cron.service", ("", "fcs00", 5432), Outcome::Denied)
    };
    let incoming = LiveFlow {
        incoming: true,
        connections: 12,
        open: 2,
        sent: 640_000 + later * 700,
        received: 2_100,
        round_trip_us: Some(180),
        ..flow("host/fcs00/shop.service", ("metrics", "fcc00", 9100), Outcome::Allowed)
    };
    let plaintext = LiveFlow {
        incoming: true,
        connections: 4,
        idle_seconds: 3,
        ..flow("10.99.0.77", ("metrics", "fcc00", 9100), Outcome::Plaintext)
    };
    vec![fortune, archive, nobody, denied, incoming, plaintext]
}

fn model() -> Model {
    let mut model = Model::new("fcc00", String::new(), Sort::Rate, Group::Flow);
    let now = Instant::now();
    model.update(flows(0), now);
    model.update(flows(1), now + Duration::from_secs(1));
    model
}

fn press(model: &mut Model, keys: &str) {
    keys.chars().for_each(|key| model.press(KeyCode::Char(key)));
}

fn names(model: &Model) -> Vec<String> {
    model.rows().into_iter().map(|row| row.to).collect()
}

#[test]
fn the_frame_in_the_documentation_is_what_it_looks_like() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/top.md");
    let document = fs::read_to_string(&path).expect("docs/top.md");
    let (before, rest) = document.split_once("```text\n").expect("the frame begins");
    let (found, after) = rest.split_once("```\n").expect("the frame ends");
    let frame = frame(&mut model(), 80, 24);
    if std::env::var_os("MURMESH_UPDATE_DOCS").is_some() {
        fs::write(path, format!("{before}```text\n{frame}```\n{after}")).expect("the document is written");
    } else {
        assert_eq!(found, frame, "run this test with MURMESH_UPDATE_DOCS=1");
    }
}

#[test]
fn everything_fits_into_80_columns_and_24_lines() {
    let mut model = model();
    let shown = frame(&mut model, 80, 24);
    for text in [
        "shop.service",
        "2.4M",
        "51M",
        "archive",
        "fcs00:5432",
        "allowed 4",
        "denied 7",
        "in clear",
        "31ms",
        "q quit",
        "? help",
    ] {
        assert!(shown.contains(text), "{text} is not in\n{shown}");
    }
    press(&mut model, "?");
    let help = frame(&mut model, 80, 24);
    assert!(help.contains("or goes in clear") && help.contains("q quit"), "{help}");
}

#[test]
fn a_frame_that_is_printed_has_all_lines_and_no_room_for_more() {
    let printed = text(&mut model(), 80).expect("a frame");
    assert_eq!(printed.lines().count(), model().rows().len() + 4, "{printed}");
}

#[test]
fn rates_are_of_what_came_since_the_look_before() {
    let mut model = model();
    let rows = model.rows();
    let fortune = rows.iter().find(|row| row.to == "fortune").expect("a row");
    assert_eq!((fortune.rate.round(), fortune.new.round(), fortune.bytes), (2_401_500.0, 120.0, 3_313_500));
    // A connection that ended meanwhile is missing for a moment: nothing goes backwards.
    model.update(flows(0), Instant::now() + Duration::from_secs(9));
    let rows = model.rows();
    let fortune = rows.iter().find(|row| row.to == "fortune").expect("a row");
    assert_eq!((fortune.rate, fortune.bytes), (0.0, 3_313_500));
}

#[test]
fn keys_sort_group_and_filter() {
    let mut model = model();
    assert_eq!(names(&model)[..2], ["archive", "fortune"], "by rate");
    press(&mut model, "ss");
    assert_eq!(names(&model)[0], "fortune", "by new connections");
    press(&mut model, "ss");
    assert_eq!(names(&model)[0], "archive", "by round trip");
    press(&mut model, "r");
    assert_eq!(names(&model).last().map(String::as_str), Some("archive"), "reversed");
    press(&mut model, "/denied");
    assert_eq!(names(&model), ["fcs00:5432"]);
    model.press(KeyCode::Esc);
    press(&mut model, "gg");
    let rows = model.rows();
    let shop = rows.iter().find(|row| row.open == 5).expect("both hosts together");
    assert_eq!(
        (&*shop.from, &*shop.to, shop.direction, &*shop.verdict),
        ("several", "several", "", "allowed")
    );
    press(&mut model, "p");
    model.update(Vec::new(), Instant::now());
    assert_eq!(model.open(), 6, "nothing changes while it is paused");
}

#[test]
fn what_is_idle_is_shown_when_asked_for() {
    let mut model = model();
    assert!(!names(&model).contains(&"fcs01:8000".to_owned()));
    press(&mut model, "i");
    assert!(names(&model).contains(&"fcs01:8000".to_owned()));
}

#[test]
fn amounts_are_short() {
    for (value, text) in [
        (0.0, "0"),
        (999.0, "999"),
        (1_500.0, "1.5k"),
        (123_456.0, "123k"),
        (999_600.0, "1.0M"),
        (2.0e13, "20T"),
    ] {
        assert_eq!(amount(value), text);
    }
}
