//! Chromium without a window, driven by the DevTools protocol over two pipes: no port, no other program.

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use data_encoding::BASE64;
use murmesh_lab::{DEADLINE, Host, Process, deadline};
use serde_json::{Value, json};

const PROGRAM: &str = "chromium";

/// As root in a lab, with nothing of its own to say to anybody.
const ARGUMENTS: [&str; 14] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--remote-debugging-pipe",
    "about:blank",
];

/// What a page complains of is told by these.
const COMPLAINTS: [&str; 3] = ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"];

/// One page of a browser on a host.
pub struct Browser {
    process: Process,
    input: ChildStdin,
    session: String,
    calls: u64,
    /// How much of the output was read.
    read: usize,
    told: VecDeque<Value>,
    events: Vec<Value>,
}

/// Whether there is no browser here; says so.
pub fn is_missing() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = !std::env::split_paths(&path).any(|directory| directory.join(PROGRAM).exists());
    if missing {
        eprintln!("skipped: {PROGRAM} is not installed; `cargo xtask setup --browser` installs it");
    }
    missing
}

impl Browser {
    /// With an empty page.
    pub fn start(host: &Host) -> Result<Self> {
        // The protocol is spoken on descriptors 3 and 4.
        let script = format!("exec {PROGRAM} \"$@\" 3<&0 4>&1 0</dev/null 1>&2");
        let profile = host.data_directory().join("browser");
        let mut command = host.command("sh")?;
        command
            .args(["-c", &script, "sh"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .args(ARGUMENTS);
        command.env("HOME", host.data_directory());
        let mut process = Process::spawn(command.stdin(Stdio::piped()))?;
        let input = process.take_stdin().context("stdin is a pipe")?;
        let (told, events) = (VecDeque::new(), Vec::new());
        let mut browser = Self { process, input, session: String::new(), calls: 0, read: 0, told, events };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach)?;
        attached["sessionId"].as_str().context("a session")?.clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Leads the page to an address.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let opened = self.call("Page.navigate", json!({"url": url}))?;
        ensure!(opened["errorText"].is_null(), "{url}: {}", opened["errorText"]);
        Ok(())
    }

    /// What an expression is in the page.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let arguments = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let evaluated = self.call("Runtime.evaluate", arguments)?;
        let thrown = &evaluated["exceptionDetails"];
        ensure!(thrown.is_null(), "{expression}: {thrown}");
        Ok(evaluated["result"]["value"].clone())
    }

    /// Waits until an expression is true in the page, which may be left for another one meanwhile.
    pub fn wait_for(&mut self, expression: &str) -> Result<()> {
        let wait = format!(
            "new Promise((resolve) => {{ const look = () => {{ try {{ if ({expression}) {{ resolve(true); return; }} }} \
             catch {{ }} setTimeout(look, 20); }}; look(); }})"
        );
        while let Err(error) = self.evaluate(&wait) {
            // The page that was asked may be left for another one.
            let is_gone =
                ["navigated or closed", "context was destroyed", "was collected", "Cannot find context"];
            if !is_gone.iter().any(|gone| error.to_string().contains(gone)) {
                let page = self.evaluate("document.body.innerText").unwrap_or_default();
                return Err(error.context(format!("waiting until {expression}, while the page shows {page}")));
            }
        }
        Ok(())
    }

    /// Presses a key, by its name in the DOM, such as "Enter" or "a".
    pub fn press(&mut self, key: &str) -> Result<()> {
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "Tab" => 9,
            "ArrowLeft" => 37,
            "ArrowRight" => 39,
            key => key.chars().next().map_or(0, |first| u32::from(first.to_ascii_uppercase())),
        };
        let text = match key {
            "Enter" => "\r",
            key if key.chars().count() == 1 => key,
            _ => "",
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Presses the key of each character.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.call("Input.insertText", json!({"text": text})).map(drop)
    }

    /// Has the page look as people want it: "light" or "dark".
    pub fn prefer(&mut self, scheme: &str) -> Result<()> {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features).map(drop)
    }

    /// Sets the size of what is seen of the page.
    pub fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", metrics).map(drop)
    }

    /// Keeps a picture of the page, if `MURMESH_SCREENSHOTS` names a directory for it.
    pub fn keep_picture(&mut self, name: &str) -> Result<()> {
        let Some(directory) = std::env::var_os("MURMESH_SCREENSHOTS") else { return Ok(()) };
        // What was drawn is seen from the next frame on.
        self.evaluate("new Promise((seen) => requestAnimationFrame(() => requestAnimationFrame(seen)))")?;
        let picture = self.call("Page.captureScreenshot", json!({"format": "png"}))?;
        let picture = BASE64.decode(picture["data"].as_str().unwrap_or_default().as_bytes())?;
        let path = Path::new(&directory).join(format!("{name}.png"));
        std::fs::write(&path, picture).with_context(|| format!("writing {}", path.display()))
    }

    /// Everything that went wrong in the page so far: exceptions, errors and warnings, violations of its policy.
    pub fn complaints(&mut self) -> Result<Vec<String>> {
        self.evaluate("0")?;
        let is_complaint =
            |event: &&Value| COMPLAINTS.contains(&event["method"].as_str().unwrap_or_default());
        Ok(self.events.iter().filter(is_complaint).map(ToString::to_string).collect())
    }

    /// Every address that the page has asked for so far.
    pub fn requested(&mut self) -> Result<Vec<String>> {
        self.evaluate("0")?;
        let requests = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        let url = |event: &Value| event["params"]["request"]["url"].as_str().map(str::to_owned);
        Ok(requests.filter_map(url).collect())
    }

    fn call(&mut self, method: &str, arguments: Value) -> Result<Value> {
        self.calls += 1;
        let mut call = json!({"id": self.calls, "method": method, "params": arguments});
        if !self.session.is_empty() {
            call["sessionId"] = self.session.clone().into();
        }
        self.input.write_all(call.to_string().as_bytes())?;
        self.input.write_all(&[0])?;
        let deadline = deadline(DEADLINE);
        loop {
            ensure!(Instant::now() < deadline, "{method} was not answered in {DEADLINE:?}");
            let mut told = self.next()?;
            if told["id"] != self.calls {
                self.events.push(told);
            } else if told["error"].is_null() {
                return Ok(told["result"].take());
            } else {
                bail!("{method}: {}", told["error"]["message"]);
            }
        }
    }

    /// What the browser tells next.
    fn next(&mut self) -> Result<Value> {
        while self.told.is_empty() {
            let read = self.read;
            let has_more = |output: &[u8]| output[read..].contains(&0);
            if let Err(error) = self.process.wait_for_stdout(DEADLINE, has_more) {
                bail!("{error:#}; it said: {}", self.process.said());
            }
            let output = self.process.stdout();
            let whole = output.iter().rposition(|byte| *byte == 0).unwrap_or(read);
            for message in output[read..whole].split(|byte| *byte == 0) {
                self.told
                    .push_back(serde_json::from_slice(message).context("what the browser tells is JSON")?);
            }
            self.read = whole + 1;
        }
        self.told.pop_front().context("it has told something")
    }
}
