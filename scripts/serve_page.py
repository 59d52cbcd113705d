"""The built-in page in headless Chromium: prints "ok" or fails. Usage: serve_page.py URL CHROMIUM KEY."""

import re
import sys

from playwright.sync_api import expect, sync_playwright

url, chromium, key = sys.argv[1:]

with sync_playwright() as play:
    browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    wrong = []

    def visit(**options):
        page = browser.new_context(**options).new_page()
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" and "401" not in said.text else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(url) else wrong.append(asked.url))
        page.goto(url)
        return page

    page = visit(color_scheme="light")
    # it asks for the key that the server wants
    expect(page.locator("#settings")).to_be_visible()
    page.fill("#key", key)
    page.locator("#key").blur()
    expect(page.locator("#model")).to_have_text("demo")
    page.fill("#system", "You are brief.")
    page.fill("#temperature", "0")
    page.fill("#limit", "30")
    page.click("#options")
    expect(page.locator("#settings")).to_be_hidden()

    page.fill("#prompt", "Tell me a story about <b>a fox</b>.")
    page.press("#prompt", "Enter")
    expect(page.locator("article.user .text")).to_have_text("Tell me a story about <b>a fox</b>.")
    note = page.locator("article.assistant .note")
    expect(note).to_contain_text("30 tokens")
    expect(note).to_contain_text("cut at the limit")
    assert len(page.locator("article.assistant .text").inner_text()) > 60

    # a long answer grows, and stops when it is told to
    page.click("#options")
    page.fill("#limit", "60000")
    page.evaluate("""() => {
        const ask = window.fetch;
        window.fetch = (to, how) => ask(to, how && how.body ? { ...how, body: JSON.stringify({ ...JSON.parse(how.body), ignore_eos: true }) } : how);
    }""")
    page.click("#options")
    page.fill("#prompt", "And now a long one.")
    page.click("#send")
    text = page.locator("article.assistant").nth(1).locator(".text")
    expect(text).to_have_text(re.compile(r".{40}"))
    # the page's policy lets nobody evaluate text there, so that the growth is looked for from outside
    before = len(text.text_content())
    expect(text).to_have_text(re.compile(r".{%d}" % (before + 1), re.DOTALL))
    page.click("#stop")
    expect(page.locator("article.assistant").nth(1).locator(".note")).to_have_text("stopped")
    expect(page.locator("#send")).to_be_visible()

    # the theme: the system's, until one is chosen
    back = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(back) == "rgb(255, 255, 255)", page.evaluate(back)
    page.click("#theme")
    assert page.evaluate(back) == "rgb(22, 23, 26)", page.evaluate(back)
    page.reload()
    assert page.evaluate(back) == "rgb(22, 23, 26)", page.evaluate(back)
    page.click("#reset")
    expect(page.locator("#empty")).to_be_visible()

    # thinking is folded, code is a block, and neither is HTML
    page.evaluate("""() => {
        const chunk = (delta) => "data: " + JSON.stringify({ choices: [{ index: 0, delta, finish_reason: null }] }) + "\\n\\n";
        const said = chunk({ role: "assistant", content: "" }) + chunk({ reasoning_content: "hm <i>x</i>" }) +
            chunk({ content: "so:\\n```py\\nprint('<b>')\\n```\\nthat" }) + "data: [DONE]\\n\\n";
        window.fetch = async () => new Response(said);
    }""")
    page.fill("#prompt", "think")
    page.click("#send")
    answer = page.locator("article.assistant").first
    expect(answer.locator("summary")).to_have_text("Thought")
    expect(answer.locator("details div")).to_be_hidden()
    answer.locator("summary").click()
    expect(answer.locator("details div")).to_have_text("hm <i>x</i>")
    expect(answer.locator("pre")).to_have_text("print('<b>')\n")
    # an error is said
    page.evaluate("window.fetch = async () => new Response(JSON.stringify({ error: { message: 'no room' } }), { status: 429 })")
    page.fill("#prompt", "more")
    page.click("#send")
    expect(page.locator(".error")).to_have_text("no room")

    phone = visit(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True, color_scheme="dark")
    assert phone.evaluate(back) == "rgb(22, 23, 26)", phone.evaluate(back)
    phone.fill("#key", key)
    phone.locator("#key").blur()
    expect(phone.locator("#model")).to_have_text("demo")
    phone.fill("#limit", "20")
    phone.locator("#limit").blur()
    phone.tap("#options")
    phone.fill("#prompt", "Hello! " + "x" * 400)
    phone.tap("#send")
    expect(phone.locator("article.assistant .note")).to_contain_text("tokens")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    box = phone.locator("#send").bounding_box()
    assert box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640, box
    assert wrong == [], wrong
    browser.close()
print("ok")
