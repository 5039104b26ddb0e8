"use strict";
// Shows openapi.json, with the token where one is needed; requests that are tried out have it too.
{
    const explorer = document.querySelector("openapi-explorer");
    const form = document.getElementById("ask");

    const show = async (token) => {
        const answer = await fetch("openapi.json", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
        const document_ = await answer.json();
        form.hidden = answer.ok;
        if (!answer.ok) {
            document.getElementById("said").textContent = token ? document_.detail : "";
            return;
        }
        document_.servers = [{ url: new URL(".", location.href).href.replace(/\/$/, "") }];
        await customElements.whenDefined("openapi-explorer");
        await explorer.loadSpec(document_);
        if (token) explorer.setAuthenticationConfiguration("bearer", { token });
    };
    form.addEventListener("submit", (event) => {
        event.preventDefault();
        show(document.getElementById("token").value);
    });
    show("");
}
