//! Chat templates: a model's own Jinja source that turns a conversation into a prompt.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::{Value, json};

use super::{Message, clock, python, typescript};
use crate::error::{Context, Error, Result};

/// The special tokens a template may name.
const SPECIAL: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// Kimi's class, whose own code gives templates the keys of tools in alphabetical order, and the tools as declarations.
const KIMI: &str = "TikTokenTokenizer";

/// What its templates call the declarations.
const DECLARATIONS: &str = "tools_ts_str";

const AGAIN: &str = "fetch the file again from the model's repository";

/// What to render besides the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// Whether the prompt ends with the opening of an assistant turn.
    pub add_generation_prompt: bool,
    /// Whether the model shall reason first: `enable_thinking` (Qwen) and `thinking` (Kimi). The template's own default
    /// when `None`.
    pub thinking: Option<bool>,
    /// The tools on offer, a list of JSON schemas.
    pub tools: Option<Value>,
    /// Variables of this template that no other has.
    pub variables: serde_json::Map<String, Value>,
}

/// A compiled chat template and the special tokens it may name.
pub struct Template {
    environment: Environment<'static>,
    source: String,
    special: BTreeMap<String, String>,
    is_kimi: bool,
}

impl Template {
    /// Reads the template in `dir`: `chat_template.jinja`, else `chat_template.json`, else the one in
    /// `tokenizer_config.json`. Returns `None` if the model has none; of several, the one named `default` counts.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let special: Vec<_> = SPECIAL.iter().filter_map(|key| Some((*key, token(config.get(key)?)?))).collect();
        let is_kimi = config.get("tokenizer_class").and_then(Value::as_str) == Some(KIMI);
        let compile = |source: &str| Ok(Self { is_kimi, ..Self::from_source(source, &special)? });
        let path = dir.join("chat_template.jinja");
        if let Some(source) = read(&path)? {
            return compile(&source).with_context(|| format!("`{}`", path.display())).map(Some);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let path = dir.join(name);
            let json = read_json(&path)?.unwrap_or_default();
            let Some(value) = json.get("chat_template").filter(|value| !value.is_null()) else { continue };
            return choose(value).and_then(compile).with_context(|| format!("`{}`", path.display())).map(Some);
        }
        Ok(None)
    }

    /// Compiles `source`; `special` are pairs like `("eos_token", "<|im_end|>")`.
    pub fn from_source(source: &str, special: &[(&str, &str)]) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failure)?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_formatter(python::format);
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("string", python::string);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", clock::strftime_now);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| failure(error).hint("the template uses something this Jinja engine does not know"))?;
        let special = special.iter().map(|(key, token)| ((*key).to_owned(), (*token).to_owned())).collect();
        Ok(Self { environment, source: source.to_owned(), special, is_kimi: false })
    }

    /// Renders a conversation into a prompt. Fails with the template's own words when it refuses the conversation.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let mut tools = options.tools.clone();
        if let Some(tools) = tools.as_mut().filter(|_| self.is_kimi) {
            tools.sort_all_objects();
        }
        let declarations =
            tools.as_ref().filter(|_| self.is_kimi && self.knows(DECLARATIONS)).and_then(typescript::declare);
        let mut context = json!({
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": options.add_generation_prompt,
        });
        if let (Some(declarations), Some(context)) = (declarations, context.as_object_mut()) {
            context.insert(DECLARATIONS.to_owned(), declarations.into());
        }
        if let (Some(thinking), Some(context)) = (options.thinking, context.as_object_mut()) {
            context.insert("enable_thinking".to_owned(), thinking.into());
            context.insert("thinking".to_owned(), thinking.into());
        }
        if let Some(context) = context.as_object_mut() {
            context.extend(options.variables.clone());
        }
        self.render_value(&context)
    }

    /// Returns whether the template looks at a variable of this name.
    pub fn knows(&self, variable: &str) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.undeclared_variables(false).contains(variable))
    }

    /// Returns the template as it is written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders with every template variable given by `context`, a JSON object; the special tokens are added
    /// where it does not name them itself.
    pub fn render_value(&self, context: &Value) -> Result<String> {
        let Some(given) = context.as_object() else {
            return Err(Error::msg("a chat template's variables must be a JSON object"));
        };
        let special = self.special.iter().map(|(key, token)| (key.as_str(), minijinja::Value::from(token.as_str())));
        let given = given.iter().map(|(key, value)| (key.as_str(), minijinja::Value::from(Serde(value))));
        let variables = minijinja::Value::from_pairs(special.chain(given));
        self.environment.get_template(NAME).and_then(|template| template.render(variables)).map_err(failure)
    }
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("special", &self.special).finish_non_exhaustive()
    }
}

const NAME: &str = "chat template";

/// What a template said to `raise_exception`, carried through the engine's own error.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: &str) -> std::result::Result<minijinja::Value, minijinja::Error> {
    let raised = Raised(message.to_owned());
    Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
}

fn failure(error: minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return Error::msg(message).context("the chat template refuses this conversation");
        }
        cause = current.source();
    }
    let line = error.line().map_or_else(String::new, |line| format!(" at line {line}"));
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    Error::msg(format_args!("the chat template fails{line}: {}{detail}", error.kind()))
}

/// Returns the source in a `chat_template` entry: a string, or a list of named ones.
fn choose(value: &Value) -> Result<&str> {
    if let Some(source) = value.as_str() {
        return Ok(source);
    }
    let named = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let default = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
    default.and_then(|entry| entry.get("template")?.as_str()).ok_or_else(|| {
        Error::msg("`chat_template` is neither a template nor a list with one named `default`")
            .hint("save the template to use as `chat_template.jinja` in the model's directory")
    })
}

/// Returns a special token's text, given as a string or as an object with `content`.
fn token(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, error).hint(AGAIN)),
    }
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(text) = read(path)? else { return Ok(None) };
    let json = serde_json::from_str(&text).map_err(|error| {
        Error::from_std(error).context(format_args!("`{}` is not valid JSON", path.display())).hint(AGAIN)
    })?;
    Ok(Some(json))
}
