//! Frames of a watch: one JSON object a line.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::plan::FrameAction;
use crate::proxy::Broken;

/// Cuts a byte stream into lines.
#[derive(Default)]
pub struct Lines(BytesMut);

impl Lines {
    /// Takes what has come and returns the lines that are complete by it, each with its end.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<Bytes> {
        self.0.extend_from_slice(chunk);
        let mut lines = Vec::new();
        while let Some(end) = self.0.iter().position(|&byte| byte == b'\n') {
            lines.push(self.0.split_to(end + 1).freeze());
        }
        lines
    }
}

/// How late what comes now is, and whether of that only the newest of each object is told.
pub type Late = Box<dyn Fn() -> (Duration, bool) + Send>;

/// A frame that has come and is not told yet.
struct Waiting {
    due: Instant,
    line: Bytes,
    /// What it is about, where a newer one about the same takes its place.
    about: Option<String>,
}

struct Watch {
    answer: reqwest::Response,
    lines: Lines,
    treat: Option<FrameAction>,
    late: Late,
    waiting: VecDeque<Waiting>,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
}

/// The frames of an answer as the process is to see them, until `end`, which cuts them off. They are late by what the action
/// says and `late` adds.
pub fn frames(
    answer: reqwest::Response,
    treat: Option<FrameAction>,
    late: Late,
    end: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, Broken>> + Send {
    // An error does not wait for something to be told.
    let waiting = match treat {
        Some(FrameAction::Error { .. }) => {
            VecDeque::from([Waiting { due: Instant::now(), line: Bytes::new(), about: None }])
        }
        _ => VecDeque::new(),
    };
    let watch = Watch { answer, lines: Lines::default(), treat, late, waiting, end: Box::pin(end), ended: false };
    stream::unfold(watch, |mut watch| async move { watch.next().await.map(|frame| (frame, watch)) })
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        loop {
            if self.ended {
                return None;
            }
            let due = self.waiting.front().map(|frame| frame.due);
            tokio::select! {
                () = &mut self.end => {
                    self.ended = true;
                    return Some(Err(Broken));
                }
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                    if let Some(frame) = self.waiting.pop_front()
                        && !self.is_overwritten(&frame)
                    {
                        return Some(self.treated(frame.line));
                    }
                }
                chunk = self.answer.chunk() => match chunk {
                    Ok(Some(chunk)) => self.take(&chunk),
                    // What was still to come late is lost, as it is with a connection.
                    Ok(None) => return None,
                    Err(_) => {
                        self.ended = true;
                        return Some(Err(Broken));
                    }
                }
            }
        }
    }

    fn take(&mut self, chunk: &[u8]) {
        if let Some(FrameAction::Drop) = self.treat {
            // The connection stays, and is read, for both sides to believe in it.
            return;
        }
        let own = match self.treat {
            Some(FrameAction::Delay { millis }) => Duration::from_millis(millis),
            _ => Duration::ZERO,
        };
        let (late, newest_only) = (self.late)();
        let due = Instant::now() + own + late;
        let wait = |line: Bytes| Waiting { due, about: newest_only.then(|| about(&line)).flatten(), line };
        self.waiting.extend(self.lines.push(chunk).into_iter().map(wait));
    }

    fn is_overwritten(&self, frame: &Waiting) -> bool {
        frame.about.is_some() && self.waiting.iter().any(|newer| newer.about == frame.about)
    }

    fn treated(&mut self, line: Bytes) -> Result<Bytes, Broken> {
        match &self.treat {
            None | Some(FrameAction::Delay { .. } | FrameAction::Drop) => Ok(line),
            Some(FrameAction::Cut) => {
                self.ended = true;
                Err(Broken)
            }
            Some(FrameAction::Error { code, reason }) => {
                self.ended = true;
                Ok(failure(*code, reason))
            }
            Some(FrameAction::Set { pointer, value }) => Ok(set(&line, pointer, value)),
        }
    }
}

/// Which object a frame is about. Bookmarks and errors are about none.
fn about(line: &Bytes) -> Option<String> {
    let frame: Value = serde_json::from_slice(line).ok()?;
    let metadata = &frame["object"]["metadata"];
    Some(format!("{}/{}", metadata["namespace"].as_str().unwrap_or_default(), metadata["name"].as_str()?))
}

fn failure(code: u16, reason: &str) -> Bytes {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("{reason}, said by the fault proxy"), "reason": reason, "code": code});
    Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": status})))
}

/// The frame with another value where the pointer leads in its object. Bookmarks carry no such field and stay.
fn set(line: &Bytes, pointer: &str, value: &Value) -> Bytes {
    let Ok(mut frame) = serde_json::from_slice::<Value>(line) else { return line.clone() };
    match frame["object"].pointer_mut(pointer) {
        Some(field) => *field = value.clone(),
        None => return line.clone(),
    }
    Bytes::from(format!("{frame}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_across_chunks() {
        let mut lines = Lines::default();
        assert!(lines.push(b"{\"a\"").is_empty());
        assert_eq!(lines.push(b":1}\n{}\n{"), vec![Bytes::from("{\"a\":1}\n"), Bytes::from("{}\n")]);
        assert_eq!(lines.push(b"}\n"), vec![Bytes::from("{}\n")]);
    }

    #[test]
    fn a_frame_is_about_an_object_or_about_none() {
        let pod = Bytes::from(r#"{"type":"ADDED","object":{"metadata":{"namespace":"n","name":"a"}}}"#);
        assert_eq!(about(&pod).as_deref(), Some("n/a"));
        let bookmark = Bytes::from(r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}"#);
        assert_eq!(about(&bookmark), None);
    }

    #[test]
    fn fields_are_replaced_where_they_are() {
        let line = Bytes::from("{\"type\":\"ADDED\",\"object\":{\"spec\":{\"tier\":\"free\"}}}\n");
        let text = String::from_utf8(set(&line, "/spec/tier", &json!(7)).to_vec()).expect("text");
        assert!(text.contains("\"tier\":7") && text.ends_with('\n'), "{text}");
        assert_eq!(set(&line, "/spec/none", &json!(7)), line);
    }
}
