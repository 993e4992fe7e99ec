// Sentences for people. `name` turns a slug into the class's name.

const list = (names, last) => (names.length > 1 ? `${names.slice(0, -1).join(", ")} ${last} ${names.at(-1)}` : names[0]);
const capital = (text) => text[0].toUpperCase() + text.slice(1);

// What was answered: "fear", "fear or surprise", "not anger, not disgust", "skipped".
export function answered(kind, classes, name) {
  const names = classes.map((slug) => name(slug).toLowerCase());
  if (kind === "candidates") return list(names, "or");
  if (kind === "not") return `not ${names.join(", not ")}`;
  return { label: names[0], skip: "skipped", flag: "flagged" }[kind] ?? kind;
}

// The question about a face: the server's, or one made of what it suggests.
export function question({ item, candidates, was }, name) {
  if (was) return `You said: ${answered(was.kind, was.classes, name)}. And now?`;
  if (item.question) return item.question;
  if (item.given) return `The label says ${name(item.given).toLowerCase()}. Keep?`;
  const names = candidates.slice(0, 3).map((candidate) => name(candidate.class).toLowerCase());
  return names.length ? `${capital(list(names, "or"))}?` : "Which expression do you see?";
}
