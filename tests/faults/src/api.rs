//! The API server as an administrator sees it, past the proxy.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::proxy::client;

/// Times that an API server which is busy is asked again, once a second.
const BUSY: u32 = 20;

/// A client with all rights.
#[derive(Clone)]
pub struct Api {
    client: reqwest::Client,
    server: String,
    token: String,
}

impl Api {
    /// A client of the API server there, whose authority's certificate is `authority` (PEM).
    pub fn new(server: &str, authority: &str, token: &str) -> Result<Self> {
        Ok(Self { client: client(authority)?, server: server.to_owned(), token: token.to_owned() })
    }

    async fn send(&self, method: Method, path: &str, content: &str, body: &Value) -> Result<reqwest::Response> {
        let mut request = self.client.request(method, format!("{}{path}", self.server)).bearer_auth(&self.token);
        if !body.is_null() {
            request = request.header("Content-Type", content).body(body.to_string());
        }
        Ok(request.send().await?)
    }

    async fn ask(&self, method: Method, path: &str, content: &str, body: &Value) -> Result<Option<Value>> {
        let what = format!("{method} {path}");
        let mut again = 0..BUSY;
        let answer = loop {
            let answer = self.send(method.clone(), path, content, body).await.with_context(|| what.clone())?;
            // Nothing was done then, and whoever breaks a cluster asks a lot of it.
            if answer.status() != reqwest::StatusCode::TOO_MANY_REQUESTS || again.next().is_none() {
                break answer;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        let code = answer.status();
        let text = answer.text().await.with_context(|| what.clone())?;
        if code == reqwest::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        ensure!(code.is_success(), "{what}: {code} {text}");
        Ok(Some(serde_json::from_str(&text).with_context(|| what)?))
    }

    /// One object, if it exists.
    pub async fn get(&self, path: &str) -> Result<Option<Value>> {
        self.ask(Method::GET, path, "", &Value::Null).await
    }

    /// The objects of a list, each with its kind.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>> {
        let Some(mut list) = self.get(path).await? else { return Ok(Vec::new()) };
        let kind = list["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).unwrap_or_default().to_owned();
        let Value::Array(mut items) = list["items"].take() else { bail!("GET {path}: no list") };
        for item in &mut items {
            item["kind"] = kind.clone().into();
        }
        Ok(items)
    }

    /// The version that the cluster is at.
    pub async fn version(&self) -> Result<String> {
        let list = self.get("/api/v1/namespaces?limit=1").await?.context("there are always namespaces")?;
        Ok(list["metadata"]["resourceVersion"].as_str().context("a list without version")?.to_owned())
    }

    /// Creates an object in that collection.
    pub async fn create(&self, path: &str, object: &Value) -> Result<()> {
        self.ask(Method::POST, path, "application/json", object)
            .await?
            .with_context(|| format!("{path} is no place"))?;
        Ok(())
    }

    /// Merges a change into an object.
    pub async fn patch(&self, path: &str, change: &Value) -> Result<()> {
        let patched = self.ask(Method::PATCH, path, "application/merge-patch+json", change).await?;
        patched.map(drop).with_context(|| format!("{path} does not exist"))
    }

    /// Puts a value in the place of what a JSON pointer leads to. Returns the code and, where it was refused, why.
    pub async fn replace(&self, path: &str, pointer: &str, value: &Value) -> Result<(u16, String)> {
        let change = json!([{"op": "replace", "path": pointer, "value": value}]);
        let answer = self.send(Method::PATCH, path, "application/json-patch+json", &change).await?;
        let code = answer.status();
        let text = answer.text().await?;
        let said =
            serde_json::from_str::<Value>(&text).ok().and_then(|said| Some(said["message"].as_str()?.to_owned()));
        Ok((code.as_u16(), if code.is_success() { String::new() } else { said.unwrap_or(text) }))
    }

    /// Deletes an object, if it exists.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.ask(Method::DELETE, path, "", &Value::Null).await.map(drop)
    }

    /// Begins a watch; its frames are the lines of the answer.
    pub async fn watch(&self, path: &str) -> Result<reqwest::Response> {
        let answer = self.send(Method::GET, path, "", &Value::Null).await?;
        ensure!(answer.status().is_success(), "GET {path}: {}", answer.status());
        Ok(answer)
    }
}
