// Pictures and folders, dropped or chosen, one after the other to this machine. Runs inside of Gradio's HTML component:
// `element` is its root, `trigger` tells Python that there is something new.
const zone = () => element.querySelector(".drop");
const say = (text) => { element.querySelector(".drop-state").textContent = text; };
const refuse = (text) => {
  const line = document.createElement("li");
  line.textContent = text;
  element.querySelector(".refused").append(line);
};
const isPicture = (name) => zone().dataset.suffixes.split(" ").some((end) => name.toLowerCase().endsWith(end));

// Of what was dropped: [name with its folders, File]. Inside of folders, only what is called like a picture.
async function* entries(entry, path, isInside) {
  if (entry.name.startsWith(".") && isInside) return;
  if (entry.isFile) {
    if (isInside && !isPicture(entry.name)) { yield null; return; }
    yield [path + entry.name, await new Promise((done, fail) => entry.file(done, fail))];
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const part = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!part.length) return;
    for (const inner of part) yield* entries(inner, `${path}${entry.name}/`, true);
  }
}

async function send(files, passed) {
  element.querySelector(".refused").replaceChildren();
  const { url } = zone().dataset;
  let told = 0, count = 0;
  for (const [name, file] of files) {
    count += 1;
    say(`Taking ${count} of ${files.length}: ${name}`);
    try {
      const answer = await fetch(`${url}?name=${encodeURIComponent(name)}`, { method: "POST", body: file });
      if (!answer.ok) refuse(await answer.text());
    } catch (error) {
      refuse(`${name}: could not be sent (${error.message})`);
    }
    if (Date.now() - told > 700) { told = Date.now(); trigger("upload"); }
  }
  say(passed ? `${passed} other ${passed > 1 ? "files of the folder were" : "file of the folder was"} left out` : "");
  trigger("upload");
}

async function dropped(items) {
  const files = [];
  let passed = 0;
  // Taken at once: after the first wait the list is empty.
  const roots = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  say("Looking…");
  try {
    for (const root of roots) {
      for await (const found of entries(root, "", false)) found ? files.push(found) : (passed += 1);
    }
  } catch (error) {
    say(`It cannot be read: ${error.message}`);
    return;
  }
  await send(files, passed);
}

element.addEventListener("dragover", (event) => { event.preventDefault(); zone().classList.add("over"); });
element.addEventListener("dragleave", () => zone().classList.remove("over"));
element.addEventListener("drop", (event) => {
  event.preventDefault();
  zone().classList.remove("over");
  dropped(event.dataTransfer.items);
});
element.addEventListener("change", async (event) => {
  const input = event.target;
  const all = [...input.files].map((file) => [file.webkitRelativePath || file.name, file]);
  const files = all.filter(([name]) => !input.webkitdirectory || (isPicture(name) && !/(^|\/)\./.test(name)));
  await send(files, all.length - files.length);
  input.value = "";
});
