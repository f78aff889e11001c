// Draws the Mermaid pictures, which GitHub draws by itself. Without a network, their text stays.
import mermaid from "https://cdn.jsdelivr.net/npm/mermaid@11.4.1/dist/mermaid.esm.min.mjs";

for (const code of document.querySelectorAll("code.language-mermaid")) {
  const picture = document.createElement("div");
  picture.className = "mermaid";
  picture.textContent = code.textContent;
  code.parentElement.replaceWith(picture);
}
mermaid.initialize({ startOnLoad: false });
await mermaid.run();
