//! Values for every field of a schema: left out, at its bounds and beyond them, of another type, huge, and hostile.

use fastrand::Rng;
use serde_json::{Map, Value, json};

/// Longer than any text that a field is meant for, and still within what the API server takes.
const HUGE: usize = 200_000;
/// So many fields are changed at once where cases are drawn.
const AT_ONCE: usize = 4;

/// Texts that have broken programs elsewhere.
const TEXTS: [&str; 18] = [
    "",
    " ",
    "-",
    "0",
    "-1",
    "1e309",
    "NaN",
    "../../etc/shadow",
    "$(HBOT_PASSWORD)",
    "a\nb: {c",
    "\u{0}",
    "\u{202e}gnp.exe",
    "a-name-of-more-than-sixty-three-characters-which-no-label-and-no-host-takes",
    "99999999999999999999d",
    "9999-12-31T23:59:59Z",
    "-000001-01-01T00:00:00Z",
    "2026-02-30T00:00:00Z",
    "2026-01-01T00:00:00Z",
];

/// Where a field is: names of properties, and positions in lists.
pub type Path = Vec<String>;

/// One field with what its schema says.
#[derive(Clone, Debug)]
pub struct Field {
    /// Where it is below the schema's top.
    pub path: Path,
    schema: Value,
}

/// A change of an object: the fields and what they become. `None` takes the field out.
pub type Case = Vec<(Path, Option<Value>)>;

/// Every field of a schema, those of objects within it and of the first item of lists included.
pub fn fields(schema: &Value) -> Vec<Field> {
    let mut found = Vec::new();
    walk(schema, &mut Vec::new(), &mut found);
    found
}

fn walk(schema: &Value, path: &mut Path, found: &mut Vec<Field>) {
    if !path.is_empty() {
        found.push(Field { path: path.clone(), schema: schema.clone() });
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        path.push(name.clone());
        walk(property, path, found);
        path.pop();
    }
    for (below, name) in [("items", "0"), ("additionalProperties", "any")] {
        if schema[below].is_object() {
            path.push(name.to_owned());
            walk(&schema[below], path, found);
            path.pop();
        }
    }
}

/// What a field can be: `None` for left out.
pub fn values(field: &Field) -> Vec<Option<Value>> {
    let schema = &field.schema;
    let mut values = vec![
        None,
        Some(Value::Null),
        Some(json!({})),
        Some(json!([])),
        Some(json!(true)),
        Some(json!(-1)),
        Some(json!(0)),
        Some(json!(1.5)),
        Some(json!(u64::MAX)),
        Some(json!("x".repeat(HUGE))),
        Some(json!({"unknown": {"deep": [[[{}]]]}})),
        Some(Value::Array(vec![json!("x"); 2_000])),
    ];
    values.extend(TEXTS.iter().map(|text| Some(json!(text))));
    values.extend(schema["enum"].as_array().into_iter().flatten().cloned().map(Some));
    for (bound, beyond) in [("minimum", -1), ("maximum", 1)] {
        if let Some(bound) = schema[bound].as_i64() {
            values.extend([bound, bound.saturating_add(beyond)].map(|number| Some(json!(number))));
        }
    }
    let has_names = schema["items"]["properties"]["name"].is_object();
    let item = |number| if has_names { json!({"name": format!("a-{number}")}) } else { json!("a") };
    let text = |count: usize| json!("a".repeat(count));
    let list = |count: usize| (0..count).map(item).collect::<Value>();
    let map = |count: usize| Value::Object((0..count).map(|number| (format!("a-{number}"), json!("a"))).collect());
    let sized: [(&str, &dyn Fn(usize) -> Value); 3] = [("Length", &text), ("Items", &list), ("Properties", &map)];
    for (of, made) in sized {
        for bound in ["min", "max"] {
            if let Some(count) = schema[format!("{bound}{of}")].as_u64().and_then(|count| usize::try_from(count).ok()) {
                values.extend([count.saturating_sub(1), count, count + 1].map(|count| Some(made(count))));
            }
        }
    }
    values
}

/// What a field can be as its schema has it, as far as that tells: one at its bounds, or left out.
fn allowed(field: &Field) -> Vec<Option<Value>> {
    let schema = &field.schema;
    let listed = schema["enum"].as_array().into_iter().flatten().cloned();
    let bounds = ["minimum", "maximum"].into_iter().filter_map(|bound| schema[bound].as_i64()).map(Value::from);
    let either = (schema["type"] == "boolean").then_some([json!(true), json!(false)]).into_iter().flatten();
    std::iter::once(None).chain(listed.chain(bounds).chain(either).map(Some)).collect()
}

/// Every value of every field by itself, then drawn combinations, half of them of values that each by itself is allowed; `count` in all.
pub fn cases(fields: &[Field], count: usize, rng: &mut Rng) -> Vec<Case> {
    let single = |field: &Field| values(field).into_iter().map(|value| vec![(field.path.clone(), value)]).collect();
    let mut cases: Vec<Case> = fields.iter().flat_map(|field| -> Vec<Case> { single(field) }).collect();
    rng.shuffle(&mut cases);
    while cases.len() < count && !fields.is_empty() {
        let mut case = Case::new();
        let choose = if rng.bool() { allowed } else { values };
        for _ in 0..rng.usize(2..=AT_ONCE) {
            let field = &fields[rng.usize(..fields.len())];
            let mut values = choose(field);
            case.push((field.path.clone(), values.swap_remove(rng.usize(..values.len()))));
        }
        cases.push(case);
    }
    cases.truncate(count);
    cases
}

/// The object with these fields changed. What is on the way to a field and is missing is made.
pub fn changed(base: &Value, case: &Case) -> Value {
    let mut object = base.clone();
    for (path, value) in case {
        set(&mut object, path, value.clone());
    }
    object
}

fn set(place: &mut Value, path: &[String], value: Option<Value>) {
    let Some((name, rest)) = path.split_first() else {
        *place = value.unwrap_or_default();
        return;
    };
    if let Ok(index) = name.parse::<usize>() {
        if !place.is_array() {
            *place = json!([]);
        }
        let Value::Array(items) = place else { return };
        if rest.is_empty() && value.is_none() {
            items.truncate(index);
            return;
        }
        items.resize(items.len().max(index + 1), json!({}));
        set(&mut items[index], rest, value);
        return;
    }
    if !place.is_object() {
        *place = Value::Object(Map::new());
    }
    let Value::Object(fields) = place else { return };
    if rest.is_empty() && value.is_none() {
        fields.remove(name);
        return;
    }
    set(fields.entry(name.clone()).or_insert_with(|| json!({})), rest, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Value {
        json!({"type": "object", "properties": {
            "tier": {"type": "string", "enum": ["free", "pro"]},
            "fleets": {"type": "array", "maxItems": 3, "items": {"properties": {"replicas": {"minimum": 0, "maximum": 50}}}},
        }})
    }

    #[test]
    fn every_field_is_found_and_meets_its_bounds() {
        let fields = fields(&schema());
        let paths: Vec<String> = fields.iter().map(|field| field.path.join(".")).collect();
        assert_eq!(paths, ["fleets", "fleets.0", "fleets.0.replicas", "tier"]);
        let replicas = values(&fields[2]);
        assert!([-1, 0, 50, 51].iter().all(|number| replicas.contains(&Some(json!(number)))));
        assert!(values(&fields[3]).contains(&Some(json!("pro"))));
        let lists = values(&fields[0]).into_iter().flatten().filter_map(|value| Some(value.as_array()?.len()));
        assert_eq!(lists.filter(|length| (2..=4).contains(length)).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(allowed(&fields[2]), [None, Some(json!(0)), Some(json!(50))]);
    }

    #[test]
    fn fields_are_changed_and_taken_out() {
        let base = json!({"tier": "free", "fleets": [{"name": "a", "replicas": 1}]});
        let at = |path: &str| path.split('.').map(str::to_owned).collect::<Path>();
        let case =
            vec![(at("fleets.0.replicas"), Some(json!(7))), (at("tier"), None), (at("redis.image"), Some(json!("x")))];
        assert_eq!(changed(&base, &case), json!({"fleets": [{"name": "a", "replicas": 7}], "redis": {"image": "x"}}));
    }

    #[test]
    fn as_many_cases_as_asked_for() {
        let mut rng = Rng::with_seed(1);
        let all = cases(&fields(&schema()), 500, &mut rng);
        assert_eq!(all.len(), 500);
        assert!(all.iter().any(|case| case.len() > 1));
    }
}
